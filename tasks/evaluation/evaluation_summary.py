"""The summary of a model's pool: its GenEval score, and how it grows with the number of pictures to choose from."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.evaluation.best_of_n import best_of, best_of_chance
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.score_statistics import Array, Score, score, score_by_seen

CHOOSERS: dict[str, Callable[[Pool, int, int], Array]] = {
    "best_of": lambda pool, n, keep: best_of(pool.correct_PN, pool.judged_PN, n, keep),
    "oracle": lambda pool, n, keep: best_of(pool.correct_PN, pool.correct_PN, n, keep),
    "random": lambda pool, n, keep: best_of_chance(pool.correct_PN),
    "shuffled": lambda pool, n, keep: best_of(pool.correct_PN, pool.shuffled_PN, n, keep),
}
"""The expected correctness (P,) of the `keep` pictures that a chooser takes among n.

The choosers are the judge, the scorer itself (the oracle), blind choice, and the judge asked about another prompt.
"""


def summarize(
    pool: Pool, scorer: str, numbers: Sequence[int], samples: int, seed: int, keep: int = 1
) -> dict[str, Any]:
    """The score of one picture by `scorer`, over all prompts and by seen and unseen, and each chooser's curve.

    A curve is over `numbers` of pictures.

    A chooser keeps the `keep` best pictures, or all if there are fewer, and is scored by their mean. Every score has
    its 95 % bootstrap interval over prompts. Numbers above the pool's size are left out, and so is the curve of a
    control that was not asked for. The judge and the metric share labels: the judge was trained on verdicts of the same
    scorer (on other prompts).
    """

    def scored(correct_PN: Array) -> Score:
        # A new generator each time, so that all scores are of the same resamples of prompts.
        return score(correct_PN, pool.tasks, samples, numpy_generator(seed, "geneval bootstrap"))

    reachable = [n for n in numbers if n <= pool.correct_PN.shape[1]]
    asked = {"shuffled": reachable if np.isfinite(pool.shuffled_PN).any() else []}
    split = score_by_seen(pool.correct_PN, pool.tasks, pool.seen, samples, numpy_generator(seed, "geneval bootstrap"))
    curves = {
        name: {str(n): as_record(scored(choose(pool, n, keep)[:, None])) for n in asked.get(name, reachable)}
        for name, choose in CHOOSERS.items()
    }
    counts = {"prompts": pool.correct_PN.shape[0], "pictures_per_prompt": pool.correct_PN.shape[1]}
    by_seen = {kind: as_record(part) for kind, part in split.items()}
    return {"scorer": scorer, **counts, "score": as_record(scored(pool.correct_PN)), "by_seen": by_seen, **curves}


def as_record(scored: Score) -> dict[str, Any]:
    """A score as plain values: `overall` with `low` and `high`, and the value and interval of each task."""
    overall = scored.overall
    tasks = {task: asdict(interval) for task, interval in scored.tasks.items()}
    return {"overall": overall.value, "low": overall.low, "high": overall.high, "tasks": tasks}


def headline(summary: dict[str, Any]) -> dict[str, float]:
    """The summary's main numbers under flat names, for the metrics and the tracker."""
    scorer, scored = summary["scorer"], summary["score"]
    numbers = {f"{scorer}/{key}": scored[key] for key in ("overall", "low", "high")}
    numbers |= {f"{scorer}/{task}": interval["value"] for task, interval in scored["tasks"].items()}
    numbers |= {f"{scorer}/{kind}": record["overall"] for kind, record in summary["by_seen"].items()}
    for name in CHOOSERS:
        numbers |= {f"{name}/{n}": record["overall"] for n, record in summary[name].items()}
    return numbers
