"""Numbers that stand below each other have the same digits, so that 0.610 does not look coarser than 0.807."""

import pytest

from tasks.system.readable_digits import three_significant_digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.6103, "0.610"),
        (0.8068, "0.807"),
        (-3.1, "-3.10"),
        (-3.114, "-3.11"),
        (0.0019868, "0.00199"),
        (0.0, "0.00"),
        (12.34, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,234"),
    ],
)
def test_zeros_at_the_end_of_three_significant_digits_stay(value: float, shown: str) -> None:
    assert three_significant_digits(value) == shown
