"""The Frechet distance of two sets of features, which is the FID where the features are Inception's.

torchmetrics computes it (Heusel et al. 2017): the squared distance of the means plus the trace of S + T - 2 (S T)^(1/2)
for the two covariances S and T, in float64 and with N - 1 in the covariances.

The estimate is too large for few pictures (Chong and Forsyth 2020), the more so the more channels the features have.
The jackknife says by about how much, which is `bias`. A distance is not corrected by it: published distances are not
either, and what they have in common is 30,000 pictures. Compare distances only at the same number of pictures.

Shapes: M real and N drawn pictures, D channels.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import nn

from tasks.evaluation.feature_distance import LEAST_PICTURES

GROUPS = 20
"""Groups of pictures that the jackknife leaves out one by one.

A distance of 2048 channels takes seconds to a minute, so pictures cannot be left out singly.
"""


@dataclass(frozen=True)
class FrechetDistance:
    """A distance with its 95 % interval, the jackknife's estimate of its bias, and what it was computed from."""

    value: float
    low: float
    high: float
    bias: float
    real: int
    drawn: int
    channels: int

    @property
    def note(self) -> str:
        """What must be said beside the distance: how many pictures it is from, and what follows from it."""
        fewest = min(self.real, self.drawn)
        biased = f"about {self.bias:.3g} of the distance is" if self.bias < self.value else "all of it may be"
        said = (
            f"Of {self.drawn} drawn and {self.real} real pictures; {biased} bias, which falls as pictures are added. "
            "Compare it only with distances from as many pictures."
        )
        if fewest > self.channels:
            return said
        return f"{said} The pictures are no more than the {self.channels} channels, so it says little in itself."


def frechet_distance(
    real_MD: NDArray[np.floating], drawn_ND: NDArray[np.floating], device: str = "cpu"
) -> FrechetDistance:
    """The Frechet distance, with a 95 % interval by the jackknife over groups of pictures of both sets.

    Group g holds every 20th picture of each set from the g-th on. Where drawn and real pictures belong to the same
    prompts in the same order, it thus leaves out a prompt's two pictures together. The interval is Student's about the
    value, and covers chance alone and not the bias. Raises ValueError for fewer than `LEAST_PICTURES` in a set.
    """
    fewest = min(len(real_MD), len(drawn_ND))
    if fewest < LEAST_PICTURES:
        raise ValueError(
            f"{len(real_MD)} real and {len(drawn_ND)} drawn pictures: a distance needs {LEAST_PICTURES} of each"
        )
    groups = min(GROUPS, fewest)
    value = _distance(real_MD, drawn_ND, device)
    left_out = np.array(
        [_distance(_without(real_MD, g, groups), _without(drawn_ND, g, groups), device) for g in range(groups)]
    )
    half_width = float(student_t.ppf(0.975, groups - 1)) * sqrt((groups - 1) * left_out.var())
    bias = (groups - 1) * (float(left_out.mean()) - value)
    counts = {"real": len(real_MD), "drawn": len(drawn_ND), "channels": real_MD.shape[1]}
    return FrechetDistance(value, value - half_width, value + half_width, bias, **counts)


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: the features are computed once, and not by each distance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return features_BD


def _without(features: NDArray[np.floating], group: int, groups: int) -> NDArray[np.floating]:
    """The features of all pictures but each `groups`-th one from `group` on."""
    return np.delete(features, np.s_[group::groups], axis=0)


def _distance(real_MD: NDArray[np.floating], drawn_ND: NDArray[np.floating], device: str) -> float:
    """torchmetrics' distance. Its module takes seconds to import, and most runs need no distance."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Given(real_MD.shape[1])).to(device)
    metric.update(torch.from_numpy(np.ascontiguousarray(real_MD, dtype=np.float64)).to(device), real=True)
    metric.update(torch.from_numpy(np.ascontiguousarray(drawn_ND, dtype=np.float64)).to(device), real=False)
    return float(metric.compute())
