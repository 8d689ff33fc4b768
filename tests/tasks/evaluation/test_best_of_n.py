"""Claims about best of N, against enumeration of every draw."""

import math
from itertools import combinations

import numpy as np
import pytest

from tasks.evaluation.best_of_n import best_of, best_of_chance, other_prompts, ranking, select, win_probabilities


def pools(seed: int, prompts: int = 9, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Random verdicts and scores with many ties and some abstentions; the last pool is abstained on entirely."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (prompts, size)).astype(np.float64)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    scores[-1] = np.nan
    return (rng.random((prompts, size)) < 0.4).astype(np.float64), scores


def kept_of(scores: np.ndarray, subset: tuple[int, ...], keep: int) -> list[int]:
    """The `keep` winners of a subset, found one after another by walking what is left of it in index order.

    Where nothing but abstentions is left, the first of them is taken.
    """
    left, kept = list(subset), []
    while left and len(kept) < keep:
        winner = None
        for i in left:
            if not math.isnan(scores[i]) and (winner is None or scores[i] > scores[winner]):
                winner = i
        kept.append(left[0] if winner is None else winner)
        left.remove(kept[-1])
    return kept


def enumerated(correct: np.ndarray, scores: np.ndarray, n: int, keep: int = 1) -> float:
    """Mean over every subset of `n` of the mean verdict on what is kept of it."""
    subsets = combinations(range(len(correct)), n)
    return float(np.mean([correct[kept_of(scores, subset, keep)].mean() for subset in subsets]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_every_draw(seed: int, n: int) -> None:
    correct, scores = pools(seed)
    expected = [enumerated(c, s, n) for c, s in zip(correct, scores, strict=True)]
    np.testing.assert_allclose(best_of(correct, scores, n), expected, atol=1e-12)


@pytest.mark.parametrize("keep", [2, 4])
@pytest.mark.parametrize("n", range(1, 8))
def test_the_best_few_of_n_are_the_mean_over_every_draw(n: int, keep: int) -> None:
    correct, scores = pools(seed=n, size=7)
    expected = [enumerated(c, s, n, keep) for c, s in zip(correct, scores, strict=True)]
    np.testing.assert_allclose(best_of(correct, scores, n, keep), expected, atol=1e-12)


def test_the_best_four_of_the_papers_pool_are_exact() -> None:
    probabilities = win_probabilities(2048, 512, 4)
    assert probabilities.sum() == pytest.approx(4, abs=1e-9) and (np.diff(probabilities) <= 0).all()
    assert probabilities[:4] == pytest.approx(4 * [1 / 4], abs=1e-12)  # the best four are kept whenever they are drawn


@pytest.mark.parametrize("n", range(1, 8))
def test_oracle_misses_only_draws_without_a_correct_picture(n: int) -> None:
    size = 7
    correct = np.tril(np.ones((size + 1, size)), -1)  # 0 to 7 correct pictures
    missed = [math.comb(size - k, n) / math.comb(size, n) for k in range(size + 1)]
    np.testing.assert_allclose(best_of(correct, correct, n), 1 - np.array(missed), atol=1e-12)


def test_best_of_one_is_chance_whatever_the_judge_says() -> None:
    correct, scores = pools(3)
    judged = np.nan_to_num(scores)
    np.testing.assert_allclose(best_of(correct, judged, 1), best_of_chance(correct), atol=1e-12)


def test_best_of_the_whole_pool_is_the_selected_picture() -> None:
    correct, scores = pools(4)
    expected = np.take_along_axis(correct, select(scores)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(best_of(correct, scores, correct.shape[1]), expected)


def test_lowest_index_wins_ties_and_abstentions_never_win() -> None:
    nan = math.nan
    scores = np.array([[1.0, 2.0, 2.0], [nan, -9.0, nan], [-math.inf, nan, -math.inf], [nan, -math.inf, nan]])
    np.testing.assert_array_equal(select(scores), [1, 1, 0, 1])
    np.testing.assert_array_equal(ranking(scores)[0], [1, 2, 0])


def test_a_pool_of_nothing_but_abstentions_shows_its_first_picture() -> None:
    scores = np.full((2, 3), math.nan)
    correct = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(select(scores), [0, 0])
    np.testing.assert_array_equal(best_of(correct, scores, 3), [1, 0])


@pytest.mark.parametrize("n", [1, 5, 16])
def test_win_probabilities_sum_to_one(n: int) -> None:
    assert win_probabilities(16, n).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("n", [0, 5])
def test_draw_beyond_the_pool_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"pool of 4"):
        win_probabilities(4, n)


@pytest.mark.parametrize("keep", [0, 3])
def test_keeping_more_than_is_drawn_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=rf"best {keep} of 2 cannot be kept"):
        win_probabilities(4, 2, keep)


@pytest.mark.parametrize("prompts", [2, 3, 50])
def test_shuffled_judge_never_reads_its_own_prompt(prompts: int) -> None:
    others = other_prompts(prompts, np.random.default_rng(prompts))
    assert sorted(others) == list(range(prompts))
    assert (others != np.arange(prompts)).all()
