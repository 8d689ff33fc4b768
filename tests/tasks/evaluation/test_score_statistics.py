"""Scores are GenEval's mean over tasks; intervals are the closed forms that the bootstrap approximates."""

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.score_statistics import difference, score, score_by_seen

SAMPLES = 4000


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def coin(prompts: int, pictures: int, chance: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((prompts, pictures)) < chance).astype(float)


def test_overall_is_the_unweighted_mean_of_tasks_of_unequal_size():
    correct = np.array([[1, 1], [0, 0], [1, 0], [1, 1]], dtype=float)
    found = score(correct, ["a", "a", "a", "b"], 100, rng())
    assert found.tasks["a"].value == pytest.approx(0.5) and found.tasks["b"].value == 1
    assert found.overall.value == pytest.approx(0.75)
    assert list(found.tasks) == ["a", "b"]


def test_one_task_s_interval_is_the_binomial_one():
    correct = np.repeat([[1.0], [0.0]], [36, 24], axis=0)
    found = score(correct, ["a"] * 60, SAMPLES, rng()).overall
    exact = stats.binom.ppf([0.025, 0.975], 60, 0.6) / 60
    assert [found.low, found.high] == pytest.approx(exact, abs=1.01 / 60)


def test_the_overall_interval_is_that_of_a_stratified_mean():
    correct, tasks = coin(400, 4, 0.4, 1), ["a"] * 300 + ["b"] * 100
    found = score(correct, tasks, SAMPLES, rng()).overall
    means = correct.mean(axis=1)
    error = np.sqrt(means[:300].var() / 300 + means[300:].var() / 100) / 2
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)


def test_pictures_of_one_prompt_are_drawn_together():
    alike = np.repeat(coin(100, 1, 0.5, 2), 16, axis=1)
    width = [
        np.ptp([s.low, s.high]) for s in (score(x, ["a"] * 100, SAMPLES, rng()).overall for x in (alike[:, :1], alike))
    ]
    assert width[0] == width[1]


def test_a_model_does_not_differ_from_itself():
    correct = coin(50, 4, 0.5, 3)
    found = difference(correct, correct, ["a"] * 25 + ["b"] * 25, 500, rng()).overall
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_paired_difference_is_narrower_than_two_separate_scores():
    hard = np.random.default_rng(4).random((200, 1))
    first = (np.random.default_rng(5).random((200, 8)) < hard).astype(float)
    second = (np.random.default_rng(6).random((200, 8)) < 0.8 * hard).astype(float)
    tasks = ["a"] * 100 + ["b"] * 100
    paired = difference(first, second, tasks, SAMPLES, rng()).overall
    change = first.mean(axis=1) - second.mean(axis=1)
    error = np.sqrt(change[:100].var() / 100 + change[100:].var() / 100) / 2
    assert paired.value == pytest.approx(score(first, tasks, 10, rng()).overall.value - second.mean())
    assert (paired.high - paired.low) == pytest.approx(2 * 1.96 * error, rel=0.08)
    alone = score(first, tasks, SAMPLES, rng()).overall
    assert paired.high - paired.low < 0.8 * (alone.high - alone.low)


def test_models_with_different_numbers_of_pictures_can_be_compared():
    found = difference(np.ones((3, 4)), np.zeros((3, 1)), ["a", "a", "b"], 50, rng())
    assert found.overall.value == found.overall.low == 1


def test_seen_and_unseen_are_scored_over_the_same_tasks():
    correct = np.array([[1], [0], [1], [1]], dtype=float)
    tasks, seen = ["a", "a", "b", "a"], [True, False, True, True]
    found = score_by_seen(correct, tasks, seen, 100, rng())
    assert found["seen"].overall.value == 1 and list(found["seen"].tasks) == ["a"]
    assert found["unseen"].overall.value == 0
    assert score_by_seen(correct, tasks, [True] * 4, 100, rng()) == {}


def test_the_same_seed_gives_the_same_interval():
    correct, tasks = coin(40, 4, 0.5, 8), ["a"] * 20 + ["b"] * 20
    assert score(correct, tasks, 200, rng()) == score(correct, tasks, 200, rng())


def test_prompts_without_a_task_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) for 1 prompts"):
        score(np.ones((2, 3)), ["a"], 10, rng())
