"""Timing of networks that draw the same batch side by side.

Shapes: R rounds, D networks.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.picture_drawing import Painter
from tasks.params.experiment_params import Params

PROMPT = "a photo of a red circle"
PICTURES = 16
"""Pictures of a batch."""
ROUNDS = 5
"""Rounds in which each network has a turn, after a first one that warms up caches and kernels."""


def depths_of(params: Params) -> Sequence[int]:
    """The depths of all models of an experiment, ascending."""
    return sorted({params.pretrain.depth, params.grow.depth, *params.prune.depths})


def seconds_per_picture(painters: Sequence[Painter], names: Sequence[str]) -> NDArray[np.float64]:
    """The seconds (R, D) that each painter takes for a picture, in `ROUNDS` rounds in which they take turns."""
    seconds_RD = np.empty((ROUNDS + 1, len(painters)))
    for turn in range(ROUNDS + 1):
        for place, painter in enumerate(painters):
            started = time.perf_counter()
            # The pictures come back to memory, so a GPU has finished when the clock stops.
            painter.draw([PROMPT], PICTURES, turn, f"latency {turn}/{ROUNDS}, {names[place]}")
            seconds_RD[turn, place] = (time.perf_counter() - started) / PICTURES
    return seconds_RD[1:]
