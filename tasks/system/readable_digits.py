"""Numbers as people read them: three digits and a unit."""

from collections.abc import Sequence

NOTHING = "–"
BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
COUNTS = ("", "k", "M", "B")
FLOPS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def scaled(value: float, units: Sequence[str]) -> str:
    """A value to three digits, in the unit that leaves one to three digits before the point. Units are 1000 apart."""
    if value == 0:
        return NOTHING
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    return f"{three_digits(value)} {unit}".rstrip()


def three_digits(value: float) -> str:
    """A value of at least 1 to three digits."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f}"


def three_significant_digits(value: float) -> str:
    """A value of any size and sign to three significant digits. Zeros at the end stay, as in `0.610` and `-3.10`."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:#.3g}".removesuffix(".")
