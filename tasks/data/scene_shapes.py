"""The six shapes as antialiased coverage masks, used to draw scenes and as templates to find shapes in pictures."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Lengths are shares of the size, which is half of a shape's extent.
SQUARE_HALF = 0.86  # so that a square looks as large as a circle
CROSS_HALF_ARM = 0.34
RING_INNER = 0.55
BAR_HALF_HEIGHT = 0.34
TRIANGLE_TOP, TRIANGLE_BASE = -0.95, 0.85  # y grows downwards; the base is 2 sizes wide
TRIANGLE_HEIGHT = TRIANGLE_BASE - TRIANGLE_TOP


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF


def _triangle(x: Array, y: Array) -> Array:
    side = (TRIANGLE_HEIGHT * np.abs(x) - (y - TRIANGLE_TOP)) / np.hypot(TRIANGLE_HEIGHT, 1)
    return np.maximum(side, y - TRIANGLE_BASE)


def _cross(x: Array, y: Array) -> Array:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 1, short - CROSS_HALF_ARM)


def _ring(x: Array, y: Array) -> Array:
    radius = np.hypot(x, y)
    return np.maximum(radius - 1, RING_INNER - radius)


def _bar(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) - 1, np.abs(y) - BAR_HALF_HEIGHT)


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "bar": _bar,
}
"""The distance from the outline of the shape of size 1 at the origin, negative inside. Exact near straight edges."""

AREAS: dict[str, float] = {
    "circle": np.pi,
    "square": (2 * SQUARE_HALF) ** 2,
    "triangle": TRIANGLE_HEIGHT,
    "cross": 8 * CROSS_HALF_ARM - (2 * CROSS_HALF_ARM) ** 2,
    "ring": np.pi * (1 - RING_INNER**2),
    "bar": 4 * BAR_HALF_HEIGHT,
}
"""The area of the shape of size 1."""

CENTROID_Y: dict[str, float] = dict.fromkeys(DISTANCES, 0.0) | {"triangle": TRIANGLE_BASE - TRIANGLE_HEIGHT / 3}
"""How far the centre of mass of the shape of size 1 lies above (-) or below (+) the origin. None lies beside it."""


def coverage(shape: str, x: float, y: float, size: float, height: int, width: int, edge: float = 1.0) -> Array:
    """The share in [0, 1] of each pixel (height, width) that the shape covers.

    The centre (x, y) and the size, half the shape's extent, are in pixels. The first pixel's centre is (0.5, 0.5).
    `edge` is the width in pixels over which the outline fades: 1 is antialiased, more is blurred.
    """
    rows, columns = np.ogrid[:height, :width]
    distance = DISTANCES[shape]((columns + 0.5 - x) / size, (rows + 0.5 - y) / size) * size
    return np.clip(0.5 - distance / edge, 0, 1)
