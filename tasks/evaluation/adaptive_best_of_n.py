"""Adaptive best of N: draw pictures of a prompt until the judge's best score reaches a threshold, or up to a limit.

The paper has no such rule; SANA-1.5 draws the same number of pictures for every prompt. But an easy prompt needs one
picture, and a hard prompt all that it can get, so the same number of pictures may go further. The threshold is set
once, on pools of training prompts, for a wanted mean number of pictures. What the rule costs and gains is then measured
on the evaluation's pools, beside a fixed number of pictures with the same mean.

A pool's pictures are independent draws, so drawing one after another is the same as taking the pool in a random order.
At which picture the rule stops, and which picture it then shows, is counted over all orders in closed form, as in
`best_of`. Nothing is simulated. If K of the N scores reach the threshold, the probability that none of the first m
pictures does is C(N-K, m) / C(N, m).

Shapes: P prompts, N pictures of each prompt's pool, L the limit, S one row of all prompts and then the bootstrap
samples. An abstention (NaN) reaches no threshold. Every task has the same weight in mean scores and in mean numbers of
pictures, as in GenEval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.best_of_n import best_of, ranking, win_probabilities
from tasks.evaluation.score_statistics import INTERVAL, Array, Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """When to stop drawing: at a score of at least `threshold`, or after `limit` pictures (1 or more)."""

    threshold: float
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"a limit of {self.limit} pictures leaves none to choose")


@dataclass(frozen=True)
class Comparison:
    """The rule beside a fixed number of pictures.

    `pictures` is the mean number of pictures that the rule draws and `adaptive` its score. `fixed` is the score of a
    fixed number of pictures with that mean. `gain` is `adaptive` minus `fixed`, paired by prompt.
    """

    pictures: Interval
    adaptive: Interval
    fixed: Interval
    gain: Interval


def pictures_drawn(scores_PN: Array, rule: Rule) -> Floats:
    """The expected number (P,) of pictures drawn for each prompt. Raises ValueError if the pool is below the limit."""
    _check_pool(scores_PN.shape[1], rule)
    reaching_K, kind_P = np.unique(_reaching(scores_PN, rule.threshold), return_inverse=True)
    # One computation for each distinct K: few prompts have a K of their own.
    drawn_K = np.array([_expected_pictures(scores_PN.shape[1], int(reaching), rule) for reaching in reaching_K])
    return drawn_K[kind_P]


def adaptive_best_of(correct_PN: Array, scores_PN: Array, rule: Rule) -> Floats:
    """The expected correctness (P,) of the picture that the judge scores highest among those drawn.

    Raises ValueError if the pool is smaller than the limit.
    """
    _check_pool(scores_PN.shape[1], rule)
    ranked_PN = np.take_along_axis(np.asarray(correct_PN, dtype=np.float64), ranking(scores_PN), axis=1)
    reaching_P = _reaching(scores_PN, rule.threshold)
    return np.array([_expected_correct(row, int(hits), rule) for row, hits in zip(ranked_PN, reaching_P, strict=True)])


def calibrate(scores_PN: Array, tasks: Sequence[str], mean: float, limit: int) -> float:
    """The threshold, one of the scores, with which the mean number of pictures of these pools comes nearest to `mean`.

    The mean number rises with the threshold, so the search halves the range. Raises ValueError if the judge abstained
    on all pictures.
    """
    choices = np.unique(scores_PN[np.isfinite(scores_PN)])
    if not len(choices):
        raise ValueError("the judge gave no picture a score: there is no threshold to choose")
    weights_P = task_weights(tasks)

    def pictures(index: int) -> float:
        return float(weights_P @ pictures_drawn(scores_PN, Rule(float(choices[index]), limit)))

    low, high = 0, len(choices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pictures(middle) <= mean else (low, middle)
    nearest = min((low, high), key=lambda index: abs(pictures(index) - mean))
    return float(choices[nearest])


def compare(
    correct_PN: Array, scores_PN: Array, tasks: Sequence[str], rule: Rule, samples: int, rng: np.random.Generator
) -> Comparison:
    """The rule beside a fixed number of pictures of equal mean, with 95 % bootstrap intervals over prompts.

    The rule's mean number of pictures is rarely a whole number. The fixed side then draws one of the two nearest whole
    numbers at random, so its score lies on the line between their scores. A resample draws prompts within each task. It
    has a mean number of its own, and both sides are compared at that mean.
    """
    drawn_P = pictures_drawn(scores_PN, rule)
    adaptive_P = adaptive_best_of(correct_PN, scores_PN, rule)
    fixed_PL = np.stack([best_of(correct_PN, scores_PN, n) for n in range(1, rule.limit + 1)], axis=1)
    weights_P = task_weights(tasks)
    weights_SP = np.stack([weights_P, *_resampled_weights(tasks, samples, rng)])
    pictures_S, adaptive_S = weights_SP @ drawn_P, weights_SP @ adaptive_P
    fixed_S = _between(weights_SP @ fixed_PL, pictures_S)
    return Comparison(*map(_interval, (pictures_S, adaptive_S, fixed_S, adaptive_S - fixed_S)))


def task_weights(tasks: Sequence[str]) -> Floats:
    """The weight (P,) of each prompt in a mean over tasks. The weights add up to 1."""
    names, task_P, counts = np.unique(np.asarray(tasks), return_inverse=True, return_counts=True)
    return 1 / (len(names) * counts[task_P])


def _check_pool(pool: int, rule: Rule) -> None:
    if rule.limit > pool:
        raise ValueError(f"{rule.limit} pictures cannot be drawn from a pool of {pool}")


def _reaching(scores_PN: Array, threshold: float) -> NDArray[np.int64]:
    """How many (P,) of each prompt's scores reach the threshold. NaN does not."""
    return (np.asarray(scores_PN) >= threshold).sum(axis=1)


def _none_among(pool: int, reaching: int, drawn: int) -> float:
    """The probability that none of the `reaching` pictures of a pool is among the first `drawn`."""
    return math.comb(pool - reaching, drawn) / math.comb(pool, drawn)


def _expected_pictures(pool: int, reaching: int, rule: Rule) -> float:
    """The expected number of pictures. Each picture is drawn if none before it reached the threshold."""
    return sum(_none_among(pool, reaching, before) for before in range(rule.limit))


def _expected_correct(ranked_N: Floats, reaching: int, rule: Rule) -> float:
    """The expected correctness of the winner of one pool, whose pictures are ranked by score.

    The first picture that reaches the threshold wins. If none does up to the limit, the best of those drawn wins. As
    long as none has reached it, all `reaching` pictures are still to come, and each is equally likely to be next.
    """
    pool, total = len(ranked_N), float(ranked_N[:reaching].sum())
    expected = sum(_none_among(pool, reaching, before) * total / (pool - before) for before in range(rule.limit))
    undecided = _none_among(pool, reaching, rule.limit)
    if undecided == 0:
        return expected
    return expected + undecided * float(ranked_N[reaching:] @ win_probabilities(pool - reaching, rule.limit))


def _resampled_weights(tasks: Sequence[str], samples: int, rng: np.random.Generator) -> list[Floats]:
    """For each of `samples` resamples of prompts, drawn with replacement within each task: the weights (P,)."""
    tasks_P, weights_P = np.asarray(tasks), task_weights(tasks)
    groups = [np.flatnonzero(tasks_P == task) for task in dict.fromkeys(tasks)]
    drawn = (np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(samples))
    return [np.bincount(rows, minlength=len(tasks_P)) * weights_P for rows in drawn]


def _between(curves_SL: Floats, pictures_S: Floats) -> Floats:
    """The value (S,) of each curve over 1 to L pictures at its own number of pictures, which may be fractional."""
    numbers_L = np.arange(1, curves_SL.shape[1] + 1)
    return np.array([np.interp(at, numbers_L, curve) for curve, at in zip(curves_SL, pictures_S, strict=True)])


def _interval(values_S: Floats) -> Interval:
    """The first value, which belongs to all prompts, with the percentiles of the others, which belong to resamples."""
    low, high = np.percentile(values_S[1:], INTERVAL)
    return Interval(float(values_S[0]), float(low), float(high))
