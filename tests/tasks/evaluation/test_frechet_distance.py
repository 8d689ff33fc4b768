"""The Frechet distance is that of its formula, and its interval and bias are those of sets drawn again and again."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from tasks.evaluation.frechet_distance import GROUPS, frechet_distance


def by_formula(real: np.ndarray, drawn: np.ndarray) -> float:
    """Equation 6 of Heusel et al. 2017, with scipy's square root of a matrix, in float64."""
    means = real.mean(axis=0) - drawn.mean(axis=0)
    first, second = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return float(means @ means + np.trace(first + second - 2 * root))


def two_sets(rng: np.random.Generator, pictures: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A set of spread 1, and a set of spread 2 whose mean is 0.5 away in each channel."""
    return rng.normal(size=(pictures, channels)), rng.normal(0.5, 2, size=(pictures, channels))


def true_distance(channels: int) -> float:
    """The distance of the distributions of `two_sets`: in each channel .5^2 of means and (2 - 1)^2 of spreads."""
    return channels * (0.25 + 1)


@pytest.mark.parametrize(("real", "drawn"), [(40, 40), (61, 33)])
def test_the_distance_is_that_of_the_formula(real: int, drawn: int) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))  # correlated channels of different sizes, far from zero
    first, second = rng.normal(size=(real, 6)) @ mix + 100, rng.normal(size=(drawn, 6)) @ mix.T + 101
    found = frechet_distance(first.astype(np.float32), second.astype(np.float32))
    assert found.value == pytest.approx(by_formula(*(x.astype(np.float32).astype(np.float64) for x in (first, second))))
    assert (found.real, found.drawn, found.channels) == (real, drawn, 6)


def test_a_set_is_0_from_itself_and_the_pictures_order_does_not_matter() -> None:
    first, second = two_sets(np.random.default_rng(1), 50, 5)
    assert abs(frechet_distance(first, first).value) < 1e-5
    assert frechet_distance(first, second[::-1]).value == pytest.approx(frechet_distance(first, second).value)


def test_the_interval_is_the_jackknifes_over_groups_of_both_sets() -> None:
    first, second = two_sets(np.random.default_rng(2), 45, 3)
    left_out = [
        by_formula(np.delete(first, np.s_[g::GROUPS], 0), np.delete(second, np.s_[g::GROUPS], 0)) for g in range(GROUPS)
    ]
    error = np.sqrt((GROUPS - 1) / GROUPS * sum((one - np.mean(left_out)) ** 2 for one in left_out))
    found = frechet_distance(first, second)
    assert found.high - found.value == pytest.approx(2.093024 * error, rel=1e-5)  # Student's t of 19 degrees
    assert found.value - found.low == pytest.approx(2.093024 * error, rel=1e-5)
    assert found.bias == pytest.approx((GROUPS - 1) * (np.mean(left_out) - by_formula(first, second)), rel=1e-6)


def test_the_interval_has_the_width_of_chance_and_the_bias_is_what_few_pictures_add() -> None:
    rng, channels = np.random.default_rng(3), 4
    found = [frechet_distance(*two_sets(rng, 60, channels)) for _ in range(60)]
    values = np.array([one.value for one in found])
    half_widths = np.array([(one.high - one.low) / 2 for one in found])
    assert half_widths.mean() == pytest.approx(2.093 * values.std(), rel=0.25)
    truth = true_distance(channels)
    excess, said = values.mean() - truth, np.mean([one.bias for one in found])
    assert excess > 0.1  # otherwise there would be no bias to tell
    assert said == pytest.approx(excess, rel=0.5)
    assert abs(values.mean() - said - truth) < excess / 2


def test_the_note_says_of_how_many_pictures_the_distance_is() -> None:
    rng = np.random.default_rng(4)
    many, few = frechet_distance(*two_sets(rng, 60, 4)), frechet_distance(*two_sets(rng, 5, 6))
    assert "60 drawn and 60 real" in many.note and "channels" not in many.note
    assert f"about {many.bias:.3g} of the distance is bias" in many.note
    assert "5 drawn and 5 real" in few.note and "no more than the 6 channels" in few.note
    assert "all of it may be bias" in replace(few, bias=few.value + 1).note


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="2 real and 9 drawn pictures"):
        frechet_distance(np.ones((2, 3)), np.ones((9, 3)))
