"""Claims about adaptive best of N, against a walk through every order in which a pool can be drawn."""

import math
from itertools import permutations

import numpy as np
import pytest

from tasks.evaluation.adaptive_best_of_n import Rule, adaptive_best_of, calibrate, compare, pictures_drawn, task_weights
from tasks.evaluation.best_of_n import best_of


def pools(seed: int, prompts: int = 8, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Random verdicts and scores with ties and abstentions; the last pool is abstained on entirely."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (prompts, size)).astype(np.float64)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    scores[-1] = np.nan
    return (rng.random((prompts, size)) < 0.4).astype(np.float64), scores


def walked(correct: np.ndarray, scores: np.ndarray, rule: Rule) -> tuple[float, float]:
    """Mean number of pictures and mean verdict over every order of one pool, drawn one by one."""
    counts, verdicts = [], []
    for order in permutations(range(len(scores))):
        drawn: list[int] = []
        for picture in order[: rule.limit]:
            drawn.append(picture)
            if any(scores[i] >= rule.threshold for i in drawn):
                break
        judged = [i for i in sorted(drawn) if not math.isnan(scores[i])]
        counts.append(len(drawn))
        verdicts.append(correct[max(judged, key=lambda i: scores[i]) if judged else min(drawn)])
    return float(np.mean(counts)), float(np.mean(verdicts))


@pytest.mark.parametrize("threshold", [-math.inf, 1.0, 2.5, 3.0, 9.0])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_pictures_and_verdicts_are_the_means_over_every_order(threshold: float, limit: int) -> None:
    correct, scores = pools(seed=limit)
    rule = Rule(threshold, limit)
    expected = np.array([walked(c, s, rule) for c, s in zip(correct, scores, strict=True)])
    np.testing.assert_allclose(pictures_drawn(scores, rule), expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(adaptive_best_of(correct, scores, rule), expected[:, 1], atol=1e-12)


def test_a_threshold_out_of_reach_is_best_of_the_limit() -> None:
    correct, scores = pools(1, prompts=20, size=9)
    rule = Rule(math.inf, 6)
    np.testing.assert_allclose(adaptive_best_of(correct, scores, rule), best_of(correct, scores, 6), atol=1e-12)
    np.testing.assert_array_equal(pictures_drawn(scores, rule), 6)


def test_abstentions_never_stop_the_drawing() -> None:
    scores = np.full((1, 4), math.nan)
    assert pictures_drawn(scores, Rule(-math.inf, 4)) == [4]
    assert adaptive_best_of(np.array([[1.0, 0, 0, 0]]), scores, Rule(-math.inf, 4)) == [1]


@pytest.mark.parametrize("mean", [1.5, 2.0, 4.0, 6.5])
def test_calibrated_threshold_is_the_score_whose_mean_is_nearest(mean: float) -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(12, 8)) + rng.normal(size=(12, 1))
    tasks = ["one"] * 3 + ["two"] * 9
    threshold = calibrate(scores, tasks, mean, limit=7)

    def distance(choice: float) -> float:
        drawn = pictures_drawn(scores, Rule(float(choice), 7))
        return abs((drawn[:3].mean() + drawn[3:].mean()) / 2 - mean)

    assert threshold in scores
    assert distance(threshold) == pytest.approx(min(map(distance, scores.ravel())), abs=1e-12)
    assert distance(threshold) < 0.1


def test_nothing_to_calibrate_on_is_said() -> None:
    with pytest.raises(ValueError, match="no picture a score"):
        calibrate(np.full((2, 3), np.nan), ["one", "two"], 2.0, 3)


def test_pools_smaller_than_the_limit_and_limits_below_one_are_refused() -> None:
    correct, scores = pools(0)
    for function in (lambda rule: pictures_drawn(scores, rule), lambda rule: adaptive_best_of(correct, scores, rule)):
        with pytest.raises(ValueError, match="6 pictures cannot be drawn from a pool of 5"):
            function(Rule(0.0, 6))
    with pytest.raises(ValueError, match="a limit of 0 pictures leaves none to choose"):
        Rule(0.0, 0)


def test_every_task_weighs_the_same() -> None:
    np.testing.assert_allclose(task_weights(["a", "b", "b", "a", "b", "c"]), [1 / 6, 1 / 9, 1 / 9, 1 / 6, 1 / 9, 1 / 3])


def easy_and_hard() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Prompts that are nearly always right, others that rarely are, and an honest judge: here adapting must pay."""
    rng = np.random.default_rng(0)
    chance = np.where(np.arange(80) % 2, 0.9, 0.1)
    correct = (rng.random((80, 12)) < chance[:, None]).astype(np.float64)
    return correct, correct + 0.1 * rng.random((80, 12)), ["a"] * 40 + ["b"] * 40


def test_comparison_is_at_equal_means_and_follows_from_its_parts() -> None:
    correct, scores, tasks = easy_and_hard()
    rule = Rule(1.0, 10)
    found = compare(correct, scores, tasks, rule, 300, np.random.default_rng(1))
    mean = float(np.mean([pictures_drawn(scores, rule)[rows].mean() for rows in (slice(40), slice(40, 80))]))
    low = math.floor(mean)
    below, above = (best_of(correct, scores, n).mean() for n in (low, low + 1))
    assert found.pictures.value == pytest.approx(mean) and 1 < mean < 10
    assert found.fixed.value == pytest.approx(below + (mean - low) * (above - below))
    assert found.adaptive.value == pytest.approx(adaptive_best_of(correct, scores, rule).mean())
    assert found.gain.value == pytest.approx(found.adaptive.value - found.fixed.value)
    for interval in (found.pictures, found.adaptive, found.fixed, found.gain):
        assert interval.low <= interval.value <= interval.high
    assert found.gain.low > 0.05


def test_intervals_are_of_resampled_prompts_each_at_its_own_mean() -> None:
    correct, scores, tasks = easy_and_hard()
    rule = Rule(1.0, 10)
    found = compare(correct, scores, tasks, rule, 4000, np.random.default_rng(2))
    drawn, adaptive = pictures_drawn(scores, rule), adaptive_best_of(correct, scores, rule)
    curves = np.stack([best_of(correct, scores, n) for n in range(1, 11)])
    rng, resampled = np.random.default_rng(3), []
    for _ in range(4000):
        rows = np.concatenate([rng.integers(0, 40, 40), rng.integers(40, 80, 40)])
        mean = drawn[rows].mean()
        fixed = np.interp(mean, range(1, 11), curves[:, rows].mean(axis=1))
        resampled.append((mean, adaptive[rows].mean(), fixed, adaptive[rows].mean() - fixed))
    for interval, values in zip(
        (found.pictures, found.adaptive, found.fixed, found.gain), zip(*resampled, strict=True), strict=True
    ):
        low, high = np.percentile(values, (2.5, 97.5))
        assert [interval.low, interval.high] == pytest.approx([low, high], abs=0.08 * (high - low))
