"""What every stage shares: its record, and the wrapper that runs it as a command.

The wrapper checks params and inputs, pins threads and seeds, runs the stage into a temporary folder, adds metrics and a
manifest, and renames the folder into place. Bad input prints one line and exits 2; an interrupt exits 128 + signal.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernels.choice import choose_kernels, chosen_kernels, use_triton
from tasks import layout
from tasks.context import Context, Interrupted, Metrics
from tasks.errors import UserError
from tasks.external import external_inputs, note_made
from tasks.files import (
    private_folder,
    replace_folder,
    sha256_file,
    sha256_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from tasks.launch import RankFailed, launch
from tasks.locks import hold
from tasks.params import Params, load_params, section_values
from tasks.processes import BAD_INPUT, end_undisturbed, end_when_told, peak_memory
from tasks.sources import code_digest
from tasks.tracking import open_tracker

COMPUTE_SECTIONS = ("compute.seed", "compute.device", "compute.dtype", "compute.kernels")
RANK_SECTIONS = ("compute.nodes", "compute.processes_per_node", "compute.parallelism")
"""Of training: they order its sums. What it resumes from is the same for all."""
TRAINING_SECTIONS = (*COMPUTE_SECTIONS, "diffusion")


@dataclass(frozen=True)
class Stage:
    """A stage: its name (`finetune@8`), its function, what it reads and where its output goes.

    `sections` names the sections (`pretrain`) or keys (`compute.seed`) of params.yaml that its result depends on.
    `branch` stages, all behind the small model, run beside others on `compute.branch_threads` threads. `parallel` ones
    compute on all processes that params ask for, and write as rank 0 alone (`tasks.ranks`).
    `publish` moves the finished folder to `out`.
    """

    name: str
    run: Callable[[Context], Metrics]
    inputs: tuple[Path, ...]
    out: Path
    sections: tuple[str, ...]
    branch: bool = False
    parallel: bool = False
    publish: Callable[[Path, Path], None] = replace_folder


def stage_threads(stage: Stage, params: Params) -> int:
    """CPU threads of this stage: part of its result, since sums are ordered by threads."""
    return params.compute.branch_threads if stage.branch else params.compute.threads


def input_digests(stage: Stage, params: Params, external: dict[str, str]) -> tuple[str, str]:
    """Digest of all that the stage's result depends on: its code, its params, its inputs' manifests (checked here).

    The second is that of its state, which does not depend on how many processes there are: others can go on from it.
    """
    inputs = external | {path.as_posix(): verify_manifest(path) for path in stage.inputs}
    values = section_values(params, stage.sections)
    whole = {"code": code_digest(stage.name), "params": values, "inputs": inputs}
    kept = {name: value for name, value in values.items() if name not in RANK_SECTIONS}
    return sha256_json(whole), sha256_json({**whole, "params": kept})


def run_stage(stage: Stage, params: Params) -> Metrics:
    """Run a stage in this process; see the module's docstring. Raises UserError while another process runs it here."""
    private_folder(layout.STATE)
    with hold(layout.STATE / "locks" / stage.name, f"{stage.name} is being run in this folder"):
        return _run_locked(stage, params)


def _run_locked(stage: Stage, params: Params) -> Metrics:
    external = external_inputs(stage.name, params)
    digest, state_digest = input_digests(stage, params, external)
    threads = stage_threads(stage, params)
    device = configure_torch(params, threads)
    state = layout.STATE / "state" / stage.name / state_digest[:16]
    refuse_other_state(stage, state)
    out = layout.STATE / "building" / stage.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.monotonic()
    with open_tracker(stage.name) as tracker:
        tracker.log_params(section_values(params, stage.sections) | {"kernels_in_use": kernels_in_use(device)})
        tracker.log_inputs(stage.inputs)
        context = Context(stage.name, params, out, state, tracker, device, threads)
        metrics, peak = _compute(stage, context)
        write_json(out / "metrics.json", metrics)
        write_manifest(out)
        stage.publish(out, stage.out)
        end_undisturbed()  # nothing is left to stop, and what could be resumed from will be gone
        note_made(external, stage.out)
        tracker.log_metrics(metrics)
        tracker.log_output(stage.out)
        record_cost(stage, digest, time.monotonic() - started, device, peak)
    shutil.rmtree(state.parent, ignore_errors=True)
    return metrics


def _compute(stage: Stage, context: Context) -> tuple[Metrics, int]:
    """The stage's metrics and the greatest memory of a process, bytes."""
    if stage.parallel and context.params.compute.world_size > 1:
        return launch(context)
    metrics = stage.run(context)
    return metrics, peak_memory(context.device)


def refuse_other_state(stage: Stage, state: Path) -> None:
    """Say that an unfinished run of other code, params or inputs is not resumed; it stays for who goes back to them."""
    others = [path for path in state.parent.glob("*") if path != state]
    if others and not state.exists():
        print(f"{stage.name}: code, params or inputs changed since {others[0]}, which is not resumed", flush=True)


def record_cost(stage: Stage, digest: str, seconds: float, device: str, peak: int) -> None:
    """Note time and peak memory, bytes, beside the results, outside every pinned output."""
    record = {"name": stage.name, "seconds": round(seconds, 3), "peak_memory_bytes": peak, "device": device}
    record["output"] = sha256_file(stage.out / "manifest.json")
    record["inputs_digest"] = digest
    record["kernels"] = kernels_in_use(device)
    write_json(layout.STAGE_RECORDS / f"{stage.name}.json", record)


def configure_torch(params: Params, threads: int) -> str:
    """Pin threads, determinism and kernels before the first tensor; returns the device name.

    Raises UserError for a device or kernels that are not there.
    """
    import torch

    torch.set_num_threads(threads)
    device = choose_device(params.compute.device, "params.yaml: compute.device")
    # cuBLAS repeats its results to the bit only with such a workspace, and reads this when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        use_triton(params.compute.kernels, torch.device(device))
    except ValueError as error:
        raise UserError(f"params.yaml: compute.{error}") from None
    choose_kernels(params.compute.kernels)
    # as use_deterministic_algorithms, which would import the compiler for a second; some CUDA kernels have no such form
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    # that mode would also fill every new tensor with NaN, which finds bugs in tests and costs a write for each of them
    torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def kernels_in_use(device: str) -> str:
    """What the network runs on here: `triton` or `reference`."""
    import torch

    return "triton" if use_triton(chosen_kernels(), torch.device(device)) else "reference"


def choose_device(wanted: str, where: str) -> str:
    """`cuda` or `cpu` for auto, cpu or cuda. Raises UserError, with `where` it was asked for, if there is no CUDA."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(f"{where} is cuda but torch sees no CUDA device: use auto or cpu")
    return "cuda" if available and wanted != "cpu" else "cpu"


def main(stage: Stage) -> None:
    """Run `stage` as a command and exit: 0 done, 1 a rank failed, 2 bad input, 128 + signal interrupted."""
    end_when_told()
    try:
        with bad_input_exits(stage.name):
            metrics = run_stage(stage, load_params())
    except Interrupted as error:
        print(f"{stage.name}: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except RankFailed as error:
        print(f"{stage.name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    print(f"{stage.name}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()), flush=True)


@contextmanager
def bad_input_exits(name: str) -> Iterator[None]:
    """A UserError in the block ends the process with its one line and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def parser(stage_name: str, doc: str | None) -> argparse.ArgumentParser:
    """An argument parser whose help is the stage's module docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m tasks.{stage_name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_main(build: Callable[[Params], Stage], name: str, doc: str | None, argv: Sequence[str] | None = None) -> None:
    """Entry point of a stage without arguments of its own: parse `--help`, build the stage, run it."""
    parser(name, doc).parse_args(argv)
    with bad_input_exits(name):
        record = build(load_params())
    main(record)


def run_depth_main(
    build: Callable[[Params, int], Stage], name: str, doc: str | None, argv: Sequence[str] | None = None
) -> None:
    """Entry point of a stage with one branch for each pruned depth: `--depth D`, one of `prune.depths`."""
    arguments = parser(name, doc)
    arguments.add_argument("--depth", type=int, required=True, help="blocks of the pruned model, one of prune.depths")
    depth = arguments.parse_args(argv).depth
    with bad_input_exits(name):
        params = load_params()
        if depth not in params.prune.depths:
            raise UserError(f"--depth {depth} is not in params.yaml's prune.depths {list(params.prune.depths)}")
        record = build(params, depth)
    main(record)
