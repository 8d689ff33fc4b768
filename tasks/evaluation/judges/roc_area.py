"""The area under the ROC curve of a judge's scores.

Shapes: P prompts, N pictures of each.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu


def measure(
    scores_PN: NDArray[np.float64], yes_PN: NDArray[np.bool_], samples: int, rng: np.random.Generator
) -> dict[str, float]:
    """The area under the ROC curve: of all pictures, with its 95 % bootstrap interval, and within prompts.

    The bootstrap draws prompts. The value within prompts is the mean over prompts that have right and wrong pictures. A
    value that is undefined, because all pictures are right or all are wrong, is left out.
    """
    drawn = rng.integers(len(yes_PN), size=(samples, len(yes_PN)))
    low, high = _percentiles([area_under_curve(scores_PN[rows], yes_PN[rows]) for rows in drawn], (2.5, 97.5))
    within = [area_under_curve(*row) for row in zip(scores_PN, yes_PN, strict=True) if 0 < row[1].sum() < len(row[1])]
    values = {
        "auc": area_under_curve(scores_PN, yes_PN),
        "auc_low": low,
        "auc_high": high,
        "auc_within_prompts": float(np.mean(within)) if within else np.nan,
    }
    return {name: value for name, value in values.items() if not np.isnan(value)}


def _percentiles(values: Sequence[float], percents: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of the values that are defined. NaN if none is."""
    defined = [value for value in values if not np.isnan(value)] or [np.nan]
    low, high = np.percentile(defined, percents)
    return float(low), float(high)


def area_under_curve(scores: NDArray[np.floating], yes: NDArray[np.bool_]) -> float:
    """The probability that a yes scores above a no, with ties counted half. NaN if all are yes, or all are no."""
    if yes.all() or not yes.any():
        return float("nan")
    wins = mannwhitneyu(scores[yes], scores[~yes]).statistic
    return float(wins / (yes.sum() * (~yes).sum()))
