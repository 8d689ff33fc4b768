"""The share of a cut's loss that fine-tuning won back, with a paired bootstrap over prompts.

Shapes: P prompts, N pictures of each, S bootstrap samples; a leading 3 stands for pruned, fine-tuned and grown.
"""

from collections.abc import Sequence

import numpy as np

from tasks.evaluation.score_statistics import INTERVAL, Array, Interval, difference


def recovered_share(
    pruned_PN: Array, finetuned_PN: Array, grown_PN: Array, tasks: Sequence[str], samples: int, rng: np.random.Generator
) -> Interval | None:
    """(finetuned - pruned) / (grown - pruned) of the GenEval scores, with its 95 % bootstrap interval.

    The inputs are correctness (P, N), where N may differ. In a resample, which draws prompts within each task, all
    three scores are of the same prompts. The result is None if the interval of the cut's loss reaches zero, since a
    share of nothing means nothing. The few resamples in which the cut lost nothing are left out of the interval.
    """
    means_3P = np.stack([correct_PN.mean(axis=1) for correct_PN in (pruned_PN, finetuned_PN, grown_PN)])
    groups = [means_3P[:, np.asarray(tasks) == task] for task in dict.fromkeys(tasks)]
    exact_3 = np.mean([group.mean(axis=1) for group in groups], axis=0)
    drawn_3S = np.mean([_resample(group, samples, rng) for group in groups], axis=0)
    gained_S, lost_S = drawn_3S[1] - drawn_3S[0], drawn_3S[2] - drawn_3S[0]
    if np.percentile(lost_S, INTERVAL[0]) <= 0 or exact_3[2] <= exact_3[0]:
        return None
    low, high = np.percentile(gained_S[lost_S > 0] / lost_S[lost_S > 0], INTERVAL)
    return Interval(float((exact_3[1] - exact_3[0]) / (exact_3[2] - exact_3[0])), float(low), float(high))


def beyond_half(
    pruned_PN: Array, finetuned_PN: Array, grown_PN: Array, tasks: Sequence[str], samples: int, rng: np.random.Generator
) -> Interval:
    """How far the fine-tuned GenEval score lies above half of the loss won back, with its 95 % bootstrap interval.

    It is `finetuned` minus the midpoint of `pruned` and `grown` on the same prompts, and zero if exactly half was won
    back. Unlike `recovered_share` it also has a meaning if a cut lost next to nothing.
    """
    midpoint_P1 = (pruned_PN.mean(axis=1, keepdims=True) + grown_PN.mean(axis=1, keepdims=True)) / 2
    return difference(finetuned_PN, midpoint_P1, tasks, samples, rng).overall


def _resample(means_3P: Array, samples: int, rng: np.random.Generator) -> Array:
    """The means (3, S) of resamples: as many prompts drawn with replacement, the same for all three."""
    prompts = means_3P.shape[1]
    return means_3P[:, rng.integers(prompts, size=(samples, prompts))].mean(axis=-1)
