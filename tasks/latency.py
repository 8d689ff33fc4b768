"""Stage `latency`: the seconds that networks of every depth take for a picture, measured side by side on one batch.

The time of a picture follows from the network's depth, whatever its weights. So one network with initial weights is
measured, whole and cut to the other depths. They take turns, and the stage computes alone, so that all meet the same
machine. The measured values are pinned like every result: of all stages this is the one whose output differs when it
runs again.
"""

from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from model.network import Sana
from model.surgery import first_blocks
from tasks.computing.seeds import derive
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.picture_timing import PICTURES, ROUNDS, depths_of, seconds_per_picture
from tasks.evaluation.score_statistics import Interval
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json


def run(context: Context) -> Metrics:
    """Write `latency.json`: the seconds per picture of each depth, with their interval; returns the values."""
    params = context.params
    painter = load_painter(paths.SMALL, params, context.device)
    depths = depths_of(params)
    torch.manual_seed(derive(params.compute.seed, "latency"))
    deepest = Sana(replace(painter.network.config, depth=depths[-1])).to(context.device).eval()
    painters = [replace(painter, network=first_blocks(deepest, depth)) for depth in depths]
    seconds_RD = seconds_per_picture(painters, [f"{depth} blocks" for depth in depths])
    measured = {str(depth): asdict(interval(seconds_R)) for depth, seconds_R in zip(depths, seconds_RD.T, strict=True)}
    facts = {"pictures": PICTURES, "rounds": ROUNDS, "threads": context.threads, "device": device_name(context.device)}
    write_json(context.out / "latency.json", facts | {"seconds_per_picture": measured})
    return {f"seconds_per_picture/{depth}": value["value"] for depth, value in measured.items()}


def interval(seconds_R: NDArray[np.float64]) -> Interval:
    """The mean over rounds with its 95 % interval by Student's t, as rounds are few."""
    mean, rounds = float(seconds_R.mean()), len(seconds_R)
    half_width = float(student.ppf(0.975, rounds - 1) * seconds_R.std(ddof=1) / np.sqrt(rounds))
    return Interval(mean, mean - half_width, mean + half_width)


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    stage_command("latency", __doc__)
