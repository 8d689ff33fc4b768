"""Aspect-ratio buckets: the few sizes, all of nearly the same area, that pictures of every shape are cropped to.

The published table (SANA's ASPECT_RATIO_1024, and at half its sides ASPECT_RATIO_512) has 40 sizes. Their sides are
multiples of a sixteenth of the base, their areas are from 90 % to 100 % of the base's square, and their sides differ by
at most a factor of 4. The table has every such size but one: 21 sixteenths high and 11 wide. It does have the same size
lying down, 11 high and 21 wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

STEPS = 16
"""Sides are multiples of base / STEPS, which must itself be a multiple of the autoencoder's downsampling."""

LONGEST_RATIO = 4
LEAST_AREA = 0.9  # as a share of the base's square
LEFT_OUT = (21, 11)  # (height, width) in sixteenths


@dataclass(frozen=True)
class Bucket:
    """A size of `height` x `width` pixels. `ratio` is height / width to two digits, like the published table's keys."""

    ratio: float
    height: int
    width: int


@cache
def aspect_buckets(base: int) -> tuple[Bucket, ...]:
    """The buckets of pictures of about base x base pixels, from the widest to the tallest.

    Raises ValueError if `base` is no multiple of 16.
    """
    if base < STEPS or base % STEPS:
        raise ValueError(f"{base} pixels cannot be the side of aspect buckets: it must be a multiple of {STEPS}")
    unit = base // STEPS
    sides = range(1, LONGEST_RATIO * STEPS + 1)
    steps = [(height, width) for height in sides for width in sides if _is_bucket(height, width)]
    buckets = [Bucket(round(height / width, 2), height * unit, width * unit) for height, width in steps]
    return tuple(sorted(buckets, key=lambda bucket: bucket.ratio))


def _is_bucket(height: int, width: int) -> bool:
    """Whether a size in sixteenths of the base is a bucket."""
    ratio_fits = max(height, width) <= LONGEST_RATIO * min(height, width)
    return ratio_fits and LEAST_AREA * STEPS**2 <= height * width <= STEPS**2 and (height, width) != LEFT_OUT


def nearest_bucket(height: int, width: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose ratio is nearest to height / width. Of two that are equally near, it is the wider one."""
    return min(buckets, key=lambda bucket: abs(bucket.ratio - height / width))
