"""How far drawn pictures are from real ones: the squared maximum mean discrepancy of their features, unbiased.

The kernel is that of the kernel inception distance (Binkowski et al. 2018, section 4): (x.y / d + 1)^3 of features of
d channels. The estimate is unbiased for any number of pictures, which the Frechet distance is not, so it may fall below
0 where two sets are alike. Features differ from experiment to experiment: compare distances only by the same features.

Shapes: M real and N drawn pictures, D channels.
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tasks.computing.normal_interval import NORMAL_95
from tasks.evaluation.score_statistics import Interval

Floats = NDArray[np.float64]


LEAST_PICTURES = 3
"""The jackknife needs so many pictures on each side."""


def mean_interval(values_K: NDArray[np.floating]) -> Interval:
    """The mean of some values with its 95 % interval by the normal distribution; of one value it has no width."""
    mean, spread = float(np.mean(values_K)), float(np.std(values_K, ddof=1)) if len(values_K) > 1 else 0.0
    half_width = NORMAL_95 * spread / sqrt(len(values_K))
    return Interval(mean, mean - half_width, mean + half_width)


def distance(real_MD: NDArray[np.floating], drawn_ND: NDArray[np.floating]) -> Interval:
    """The unbiased squared MMD, with a 95 % interval by the jackknife over the pictures of both sets.

    Raises ValueError for fewer than `LEAST_PICTURES` on a side.
    """
    if min(len(real_MD), len(drawn_ND)) < LEAST_PICTURES:
        raise ValueError(f"{len(real_MD)} real and {len(drawn_ND)} drawn pictures: a distance needs at least 3 of each")
    real, drawn = np.asarray(real_MD, dtype=np.float64), np.asarray(drawn_ND, dtype=np.float64)
    within_real, within_drawn, across_MN = _without_self(real), _without_self(drawn), _kernel(real, drawn)
    value = _mean_pairs(within_real) + _mean_pairs(within_drawn) - 2 * across_MN.mean()
    left_out_M = _leave_one_out(within_real) + _mean_pairs(within_drawn) - 2 * _means_without_each_row(across_MN)
    left_out_N = _mean_pairs(within_real) + _leave_one_out(within_drawn) - 2 * _means_without_each_row(across_MN.T)
    half_width = NORMAL_95 * sqrt(_jackknife_variance(left_out_M) + _jackknife_variance(left_out_N))
    return Interval(float(value), float(value - half_width), float(value + half_width))


def _kernel(first: Floats, second: Floats) -> Floats:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _without_self(features: Floats) -> Floats:
    """The kernel of each pair of different pictures; a picture with itself counts 0."""
    kernel = _kernel(features, features)
    np.fill_diagonal(kernel, 0)
    return kernel


def _mean_pairs(kernel_KK: Floats) -> float:
    """The mean over pairs of different pictures."""
    count = len(kernel_KK)
    return float(kernel_KK.sum() / (count * (count - 1)))


def _leave_one_out(kernel_KK: Floats) -> Floats:
    """The mean (K,) over pairs of different pictures, without each picture in turn."""
    count = len(kernel_KK)
    return (kernel_KK.sum() - 2 * kernel_KK.sum(axis=1)) / ((count - 1) * (count - 2))


def _means_without_each_row(kernel_KL: Floats) -> Floats:
    """The mean (K,) of all entries without each row in turn."""
    return (kernel_KL.sum() - kernel_KL.sum(axis=1)) / ((len(kernel_KL) - 1) * kernel_KL.shape[1])


def _jackknife_variance(left_out_K: Floats) -> float:
    """The variance of an estimate by its values without each picture in turn (Efron and Stein 1981)."""
    count = len(left_out_K)
    return float((count - 1) / count * np.square(left_out_K - left_out_K.mean()).sum())
