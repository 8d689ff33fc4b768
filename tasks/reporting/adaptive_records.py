"""The report's numbers on adaptive best of N beside a fixed number of pictures, from the pools of the evaluation."""

from dataclasses import asdict
from typing import Any

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.evaluation.adaptive_best_of_n import Rule, calibrate, compare, pictures_drawn, task_weights
from tasks.evaluation.judges.judge_calibration import Calibration, load_calibration
from tasks.evaluation.picture_pool import Pool, load_pool
from tasks.params.experiment_params import Params
from tasks.system import paths


def adaptive_records(params: Params) -> list[dict[str, Any]]:
    """For each baseline and each wanted mean number of pictures: the rule, what it drew, and what it gained.

    The threshold is set on the small model's pictures of training prompts, whichever model is scored. Means that the
    limit cannot reach are left out. If the judge abstained on all those pictures, the list is empty.
    """
    calibration = load_calibration(paths.JUDGE)
    if not np.isfinite(calibration.scores_PN).any():
        return []
    pools = {name: load_pool(paths.EVALUATION / name) for name in params.workflow.baselines}
    return [
        {"model": name} | record(calibration, pool, mean, params)
        for name, pool in pools.items()
        for mean in params.evaluation.adaptive_means
        if mean < limit(calibration, pool)
    ]


def limit(calibration: Calibration, pool: Pool) -> int:
    """The most pictures that may be drawn of a prompt: as many as both pools have."""
    return min(calibration.scores_PN.shape[1], pool.judged_PN.shape[1])


def record(calibration: Calibration, pool: Pool, mean: float, params: Params) -> dict[str, Any]:
    """One comparison as plain values. `target` is the wanted mean, `calibrated` the mean on the training prompts."""
    most = limit(calibration, pool)
    rule = Rule(calibrate(calibration.scores_PN, calibration.tasks, mean, most), most)
    calibrated = task_weights(calibration.tasks) @ pictures_drawn(calibration.scores_PN, rule)
    rng = numpy_generator(params.compute.seed, "adaptive bootstrap")
    found = compare(pool.correct_PN, pool.judged_PN, pool.tasks, rule, params.evaluation.bootstrap_samples, rng)
    facts = {"target": mean, "calibrated": float(calibrated), "threshold": rule.threshold, "limit": rule.limit}
    return facts | asdict(found)
