"""The distance of two sets of features is the unbiased squared MMD, with the jackknife's interval."""

import numpy as np
import pytest

from tasks.evaluation.feature_distance import distance, mean_interval


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b / len(a) + 1) ** 3)


def by_pairs(real: np.ndarray, drawn: np.ndarray) -> float:
    """The estimate by its definition, pair by pair."""

    def within(rows: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]))

    across = float(np.mean([kernel(a, b) for a in real for b in drawn]))
    return within(real) + within(drawn) - 2 * across


def test_the_distance_is_the_mean_over_pairs_of_different_pictures() -> None:
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(5, 3)), rng.normal(0.5, 2, size=(4, 3))
    assert distance(real, drawn).value == pytest.approx(by_pairs(real, drawn), rel=1e-12)


def test_the_interval_is_the_jackknifes_over_both_sets() -> None:
    rng = np.random.default_rng(1)
    real, drawn = rng.normal(size=(6, 3)), rng.normal(0.5, 2, size=(4, 3))
    without_real = np.array([by_pairs(np.delete(real, i, 0), drawn) for i in range(6)])
    without_drawn = np.array([by_pairs(real, np.delete(drawn, i, 0)) for i in range(4)])
    variance = sum((len(each) - 1) * each.var() for each in (without_real, without_drawn))
    found = distance(real, drawn)
    assert found.high - found.value == pytest.approx(1.96 * variance**0.5, rel=1e-9)
    assert found.value - found.low == pytest.approx(1.96 * variance**0.5, rel=1e-9)


def test_sets_of_one_distribution_are_0_apart_in_the_mean_and_others_are_not() -> None:
    rng = np.random.default_rng(2)
    alike = [distance(rng.normal(size=(20, 4)), rng.normal(size=(15, 4))) for _ in range(200)]
    assert abs(np.mean([one.value for one in alike])) < 0.05
    covered = np.mean([one.low <= 0 <= one.high for one in alike])
    assert covered > 0.85  # the jackknife is a little short for so few pictures
    apart = distance(rng.normal(size=(50, 4)), rng.normal(1.5, 1, size=(50, 4)))
    assert apart.low > 0


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="2 real and 5 drawn pictures"):
        distance(np.ones((2, 3)), np.ones((5, 3)))


def test_a_mean_has_the_interval_of_its_standard_error() -> None:
    values = np.array([1.0, 2.0, 4.0])
    found = mean_interval(values)
    assert found.value == pytest.approx(7 / 3)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 3**0.5)
    one = mean_interval(values[:1])
    assert one.low == one.value == one.high == 1
