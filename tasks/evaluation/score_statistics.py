"""GenEval's numbers with their uncertainty: means over pictures, then over tasks, and bootstrap intervals over prompts.

The inputs are `correct_PN` (P prompts, N pictures) and each prompt's task. A value is 1 if the picture is right and 0
if not. It may lie between them (an expectation, for best of N), and is NaN where a prompt has fewer pictures than
others. The bootstrap draws prompts with replacement within each task, and keeps the pictures of a prompt together. So
an interval says how far the score depends on the choice of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap distribution: the 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The overall score, which is the unweighted mean of the tasks, and the score of each task."""

    overall: Interval
    tasks: dict[str, Interval]


def score(correct_PN: Array, tasks: Sequence[str], samples: int, rng: np.random.Generator) -> Score:
    """The score of pictures (P, N). `tasks` (P) are the prompts' tasks; the result has them in order of appearance."""
    means, counts = _prompt_means(correct_PN, tasks), _picture_counts(correct_PN)
    drawn = {task: _resample(means[rows], counts[rows], samples, rng) for task, rows in _rows(tasks).items()}
    exact = {task: float(np.average(means[rows], weights=counts[rows])) for task, rows in _rows(tasks).items()}
    overall = _interval(float(np.mean(list(exact.values()))), np.mean(list(drawn.values()), axis=0))
    return Score(overall, {task: _interval(exact[task], drawn[task]) for task in exact})


def difference(
    first_PN: Array, second_PN: Array, tasks: Sequence[str], samples: int, rng: np.random.Generator
) -> Score:
    """`first` minus `second` on the same prompts, which may have different numbers of pictures in the two.

    The bootstrap is paired: prompts that are hard for both do not widen the interval.
    """
    paired = _prompt_means(first_PN, tasks) - _prompt_means(second_PN, tasks)
    return score(paired[:, None], tasks, samples, rng)


def score_by_seen(
    correct_PN: Array, tasks: Sequence[str], seen: Sequence[bool | None], samples: int, rng: np.random.Generator
) -> dict[str, Score]:
    """The scores of prompts seen and unseen in training, over the tasks that have both kinds, so that they compare.

    Prompts with None, which may be either, are left out. The result is empty if no task has both kinds.
    """
    tasks_P = np.asarray(tasks)
    seen_P, unseen_P = (np.array([one is kind for one in seen]) for kind in (True, False))
    shared = np.isin(tasks_P, list({*tasks_P[seen_P]} & {*tasks_P[unseen_P]}))
    if not shared.any():
        return {}
    kinds = {"seen": shared & seen_P, "unseen": shared & unseen_P}
    return {kind: score(correct_PN[rows], tasks_P[rows].tolist(), samples, rng) for kind, rows in kinds.items()}


def _prompt_means(correct_PN: Array, tasks: Sequence[str]) -> Array:
    """The mean (P,) of each prompt's pictures.

    The mean of these over a task, weighted by numbers of pictures, is the mean over the task's pictures.
    """
    if correct_PN.ndim != 2 or len(correct_PN) != len(tasks) or correct_PN.size == 0:
        raise ValueError(f"correct is {correct_PN.shape} for {len(tasks)} prompts: it must be (prompts, pictures)")
    return np.nanmean(correct_PN, axis=1, dtype=np.float64)


def _picture_counts(correct_PN: Array) -> Array:
    """The number (P,) of each prompt's pictures."""
    return (~np.isnan(correct_PN)).sum(axis=1).astype(np.float64)


def _rows(tasks: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """The positions of each task's prompts."""
    return {task: np.flatnonzero(np.asarray(tasks) == task) for task in dict.fromkeys(tasks)}


def _resample(means: Array, counts: Array, samples: int, rng: np.random.Generator) -> Array:
    """The means over pictures (samples,) of resamples: as many prompts, drawn with replacement."""
    drawn = rng.integers(len(means), size=(samples, len(means)))
    return np.average(means[drawn], axis=1, weights=counts[drawn])


def _interval(value: float, drawn: Array) -> Interval:
    low, high = np.percentile(drawn, INTERVAL)
    return Interval(value, float(low), float(high))
