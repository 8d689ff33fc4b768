"""How long stages will take on the CPU here: `python -m tasks.planning.time_estimate FOLDER STAGE...`.

It reads params from its standard input and prints one line for those stages that have no output in FOLDER yet. It
prints nothing on a GPU, if nothing is missing, or if the number of pictures is not known. A flow runs it as a process
of its own, so it changes no number of any stage.

The estimate is a stage's counted FLOPs over the rate of matrix products, which is measured for a moment, times the
share of that rate that training reaches. The shares and the constant costs of a stage were fitted to the default and
the smoke profile on two CPU cores, so on another kind of processor the estimate may be off by half.
"""

import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import yaml

from tasks.data.sources.picture_folder import READABLE
from tasks.params.experiment_params import Params
from tasks.params.params_files import build_params
from tasks.params.user_files import own_path
from tasks.planning.experiment_scale import measure_scale
from tasks.planning.planned_experiment import open_experiment
from tasks.planning.stage_costs import stage_costs
from tasks.runtime.torch_setup import choose_device
from tasks.stages import Stage, edges, stages_of
from tasks.system.errors import UserError
from tasks.system.manifest import MANIFEST
from tasks.system.processes import die_with_parent

MEASURED_SECONDS = 0.3
SIDE = 512
"""Of the matrices that are multiplied. Both fit the cache, as a batch's do."""
FLOAT32_STEMS = ("autoencoder", "text_encoder")
"""Stages that train in float32, whatever `compute.dtype` says."""
SHARES = {"bfloat16": 0.25, "float32": 0.37}
"""The share of the matrix products' rate that the network reaches in each format. Much of a step is no product."""
ENCODERS_SHARE = 0.135
"""The same share for training autoencoder and text encoder, whose layers are small."""
START_SECONDS = 15.0
"""What a flow does before and after its stages: imports, Prefect's temporary server, DVC's look at all outputs."""
BUSY_SHARE = 0.75
"""The load of the last minute, as a share of the CPUs, above which the estimate is said to be too short."""
STAGE_SECONDS = 2.0
"""What a stage costs beside its FLOPs: its process, its files, and DVC's copy of its output."""


def estimate_line(params: Params, workspace: Path, names: Collection[str]) -> str:
    """The line to print on the stages `names`, or an empty text if there is nothing to say.

    Raises UserError if the params do not fit.
    """
    wanted = {name: stage for name, stage in stages_of(params).items() if name in names}
    stages = {name: stage for name, stage in wanted.items() if not has_output(stage, workspace)}
    samples = own_pictures(params)
    if not stages or (params.shard.source != "scenes" and samples is None):
        return ""
    if choose_device(params.compute.device, "compute.device") != "cpu":
        return ""
    duration = duration_text(START_SECONDS + makespan(params, stages, stage_seconds(params, samples)))
    missing = f"{len(stages)} of {len(wanted)} stages have no output here yet"
    how = f"estimated from counted FLOPs and a short measurement{load_text()}"
    return f"{missing}: {duration}, or less where DVC's cache has one ({how})"


def load_text() -> str:
    """What to say of other processes, which the estimate does not know of, if there are many; else an empty text."""
    busy, cpus = os.getloadavg()[0], os.cpu_count() or 1
    return (
        f"; longer, as other processes would keep {busy:.0f} CPUs busy and here are {cpus}"
        if busy > BUSY_SHARE * cpus
        else ""
    )


def has_output(stage: Stage, workspace: Path) -> bool:
    """Whether the stage's output is in the workspace. It may be of other params."""
    return all((workspace / path / (MANIFEST if path == stage.output else "")).exists() for path in stage.written)


def own_pictures(params: Params) -> int | None:
    """How many pictures a user's own folder holds. None for other sources, whose samples are not counted here."""
    if params.shard.source != "folder" or params.shard.path is None:
        return None
    names = (name for _, _, files in os.walk(own_path(params.shard.path)) for name in files)
    return sum(Path(name).suffix.lower() in READABLE for name in names)


def stage_seconds(params: Params, samples: int | None) -> dict[str, float]:
    """The seconds of each stage when it computes on its own threads."""
    experiment = open_experiment(params, measure_scale(params, samples), params.compute.world_size)
    rates = {name: matrix_rate(getattr(torch, name)) for name in SHARES}
    costs, stages = {cost.stage: cost.flops for cost in stage_costs(experiment)}, stages_of(params)
    found = {}
    for name, stage in stages.items():
        rate = SHARES[params.compute.dtype] * rates[params.compute.dtype]
        if stage.stem in FLOAT32_STEMS:
            rate = ENCODERS_SHARE * rates["float32"]
        found[name] = STAGE_SECONDS + costs[name] / (rate * stage.threads(params))
    return found


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs a second of products of square matrices on one thread: the best of many, as others may compute too."""
    torch.set_num_threads(1)
    left, right = torch.ones(2, SIDE, SIDE, dtype=dtype)
    best, ends = 0.0, time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < ends:
        begun = time.perf_counter()
        left @ right
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - begun))
    return best


def makespan(params: Params, stages: Mapping[str, Stage], seconds: Mapping[str, float]) -> float:
    """The seconds until all of these stages are done, as the flow orders them.

    Main stages compute alone, one after another. Branch stages share the machine, `workflow.parallel_branches` at once.
    No stage begins before those that it waits for.
    """
    alone = params.compute.threads > params.compute.branch_threads
    free, ends = [0.0] * max(1, params.workflow.parallel_branches), dict[str, float]()
    for name, upstream in edges(stages_of(params).values()).items():
        ready = max((ends.get(other, 0.0) for other in upstream), default=0.0)
        if name not in stages:
            ends[name] = ready
            continue
        if alone and not stages[name].branch:
            ends[name] = max(*free, ready) + seconds[name]
            free = [ends[name]] * len(free)
        else:
            slot = free.index(min(free))
            free[slot] = ends[name] = max(free[slot], ready) + seconds[name]
    return max(ends.values())


def duration_text(seconds: float) -> str:
    """`about 14 minutes`; `about 1 minute` for less, and hours and days where minutes are many."""
    minutes = seconds / 60
    size, unit = (1, "minute") if minutes < 100 else (60, "hour") if minutes < 48 * 60 else (24 * 60, "day")
    count = max(1, round(minutes / size))
    return f"about {count} {unit}{'s' if count > 1 else ''}"


def main() -> None:
    """Print the line, if there is one. Params that do not fit are left to the flow, which names the fault."""
    die_with_parent()
    try:
        folder, *names = sys.argv[1:]
        if line := estimate_line(build_params(yaml.safe_load(sys.stdin), "params"), Path(folder), names):
            print(line)
    except UserError:
        return


if __name__ == "__main__":
    main()
