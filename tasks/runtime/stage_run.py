"""Runs a stage: checks its inputs, computes, moves the finished output into place, and records what it cost.

The stage computes in a temporary folder. Then its metrics and a manifest are added, and the folder is renamed into
place, so that an output is either complete or not there.
"""

import importlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.params.experiment_params import Params
from tasks.params.params_files import section_values
from tasks.params.user_files import digests_of, record_user_files
from tasks.runtime.code_digest import code_digest
from tasks.runtime.context import Context, Metrics
from tasks.runtime.launch_ranks import launch
from tasks.runtime.torch_setup import configure_torch, kernels_in_use
from tasks.stages import RANK_SECTIONS, Stage, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import move_into, private_folder, replace_folder, write_json
from tasks.system.manifest import sha256_file, sha256_json, verify_manifest, write_manifest
from tasks.system.processes import ignore_term, peak_memory
from tasks.tracking.tracker import open_tracker


def run_stage(stage: Stage, params: Params) -> Metrics:
    """Run a stage in this process; returns its metrics. Raises UserError if another process runs it here."""
    private_folder(paths.STATE)
    with exclusive_lock(paths.STATE / "locks" / stage.name, f"{stage.name} is being run in this folder"):
        return _run_locked(stage, params)


def computation_of(stage: Stage) -> Callable[..., Metrics]:
    """The function that computes a stage: `run` of its module, which takes the context and the stage's `arguments`."""
    return importlib.import_module(stage.module).run


def inputs_of(stage: Stage, params: Params) -> list[Path]:
    """The output folders of other stages that a stage reads."""
    return [other.output for other in stages_of(params).values() if other != stage and stage.reads(other)]


def state_digest_of(stage: Stage, params: Params, inputs: Sequence[Path], user_files: dict[str, str]) -> str:
    """The digest of everything that a stage's training state depends on.

    It covers code, params, the user's files and the manifests of inputs, but not the number of ranks, since any number
    of them can resume. Raises UserError if an input does not match its manifest.
    """
    digests = user_files | {path.as_posix(): verify_manifest(path) for path in inputs}
    values = section_values(params, stage.sections)
    kept = {name: value for name, value in values.items() if name not in RANK_SECTIONS}
    return sha256_json({"code": code_digest(stage.stem), "params": kept, "inputs": digests})


def _run_locked(stage: Stage, params: Params) -> Metrics:
    inputs, user_files = inputs_of(stage, params), digests_of(stage.user_files, params)
    state_digest = state_digest_of(stage, params, inputs, user_files)
    threads = stage.threads(params)
    device = configure_torch(params, threads)
    state = paths.STATE / "state" / stage.name / state_digest[:16]
    report_other_state(stage, state)
    out = building_folder(stage)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.monotonic()
    with open_tracker(stage.name) as tracker:
        tracker.log_params(section_values(params, stage.sections) | {"kernels_in_use": kernels_in_use(device)})
        tracker.log_inputs(inputs)
        context = Context(stage.name, params, out, state, tracker, device, threads)
        metrics, peak = _compute(stage, context)
        write_json(out / "metrics.json", metrics)
        write_manifest(out)
        put_in_place(stage, out)
        ignore_term()  # the output is complete, so that TERM would now lose nothing but its record
        record_user_files(user_files, stage.output)
        tracker.log_metrics(metrics)
        tracker.log_output(stage.output)
        record_cost(stage, time.monotonic() - started, device, peak)
    shutil.rmtree(state.parent, ignore_errors=True)
    return metrics


def _compute(stage: Stage, context: Context) -> tuple[Metrics, int]:
    """The stage's metrics, and the peak memory in bytes of the process that took most."""
    if has_ranks(stage, context.params):
        return launch(context)
    metrics = computation_of(stage)(context, *stage.arguments)
    return metrics, peak_memory(context.device)


def has_ranks(stage: Stage, params: Params) -> bool:
    """Whether several processes compute the stage, and not the one that runs it."""
    return stage.on_ranks and params.compute.world_size > 1


def building_folder(stage: Stage) -> Path:
    """Where the stage computes its output: on the output's file system, as only there a folder moves in one step.

    That is the state's, unless the user has laid `outputs` on another disk by a symbolic link. Raises UserError if
    the output itself is such a link, in whose place the finished folder could not be put.
    """
    if stage.output.is_symlink():
        raise UserError(f"{stage.output} is a symbolic link: make it a folder, and link {paths.OUTPUTS} as a whole")
    top = Path(stage.output.parts[0])
    top.mkdir(exist_ok=True)
    elsewhere = top.stat().st_dev != paths.STATE.stat().st_dev
    return (top / paths.BUILDING if elsewhere else paths.STATE / "building") / stage.name


def put_in_place(stage: Stage, finished: Path) -> None:
    """Move the finished folder to the stage's output, or its files into the folder where other files lie too."""
    if stage.written == (stage.output,):
        replace_folder(finished, stage.output)
    else:
        move_into(finished, stage.output)


def report_other_state(stage: Stage, state: Path) -> None:
    """Print that an unfinished run of other code, params or inputs is not resumed.

    Its state stays on disk, in case code, params and inputs are changed back.
    """
    others = [path for path in state.parent.glob("*") if path != state]
    if others and not state.exists():
        print(f"{stage.name}: code, params or inputs changed since {others[0]}, which is not resumed", flush=True)


def record_cost(stage: Stage, seconds: float, device: str, peak: int) -> None:
    """Write the stage's seconds and its peak memory in bytes to `results/stages/`.

    They differ from run to run, so they lie outside every pinned output.
    """
    record = {"name": stage.name, "seconds": round(seconds, 3), "peak_memory_bytes": peak, "device": device}
    record["output"] = sha256_file(stage.output / "manifest.json")
    record["kernels"] = kernels_in_use(device)
    write_json(paths.STAGE_RECORDS / f"{stage.name}.json", record)
