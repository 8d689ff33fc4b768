"""Scenes: small pictures of one to four coloured shapes on a plain ground, captioned in GenEval's words.

Lengths are in shares of the picture's side, so a scene can be rendered at any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tasks.data.scene_shapes import coverage
from tasks.data.scene_vocabulary import COLOURS, TASKS, Line, seen_lines

TASK_WEIGHTS: dict[str, float] = {
    "single_object": 0.08,
    "two_object": 0.20,
    "counting": 0.20,
    "colors": 0.12,
    "position": 0.22,
    "color_attr": 0.18,
}
"""The share of training scenes with captions of each task. Harder tasks come more often."""

SIZES: dict[int, tuple[float, float]] = {
    1: (5.6 / 32, 6.4 / 32),
    2: (5.6 / 32, 6.4 / 32),
    3: (5.2 / 32, 5.4 / 32),
    4: (5.2 / 32, 5.4 / 32),
}
"""The least and the largest size (half the extent) of shapes, by their number. The largest ones still fit together."""

LATTICE = 8
"""Centres lie on a lattice of this many steps to a side, so a shape has few ways to fall on a latent's cells."""

GAP = 1.2 / 32
"""Least space between the squares around two shapes."""

EDGE = 1.0 / 32
"""Least space between a shape's square and the picture's edge."""

STEEPNESS = 2.0
"""In position scenes the offset along the stated axis is at least this many times the offset across it."""

GROUND_LEVELS = (122, 134)
"""The grey level of the ground, of 255: the least, and one above the most."""

GROUND_TINT = 2
"""How far each colour channel of the ground may differ from its grey level."""

LAYOUTS_AT_ONCE = 256
"""Random layouts that are tried at once; the first that fits is taken."""

_AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Shape:
    """A shape in a scene: its class, the name of its colour, its centre and its size (half its extent)."""

    name: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """What to draw, and its caption. `tag` is the GenEval task whose words the caption uses."""

    tag: str
    caption: str
    shapes: tuple[Shape, ...]
    ground: tuple[int, int, int]


def draw_task(rng: np.random.Generator, tasks: Sequence[str]) -> str:
    """One of these tasks. The harder ones come more often, as in `TASK_WEIGHTS`."""
    weights = np.array([TASK_WEIGHTS[task] for task in tasks])
    return tasks[rng.choice(len(tasks), p=weights / weights.sum())]


def sample_scene(rng: np.random.Generator, tag: str | None = None) -> Scene:
    """A random training scene of `tag`, or of a task drawn by `TASK_WEIGHTS`. Its caption is never held out."""
    if tag is None:
        tag = TASKS[rng.choice(len(TASKS), p=[TASK_WEIGHTS[task] for task in TASKS])]
    choices = seen_lines(tag)
    line = choices[rng.integers(len(choices))]
    names = [need["class"] for need in line["include"] for _ in range(need["count"])]
    colours = _sample_colours(rng, line)
    sizes = rng.uniform(*SIZES[len(names)], size=len(names))
    places = _sample_places(rng, sizes, _relation(line))
    shapes = tuple(
        Shape(name, colour, float(x), float(y), float(size))
        for name, colour, (x, y), size in zip(names, colours, places, sizes, strict=True)
    )
    ground = rng.integers(*GROUND_LEVELS) + rng.integers(-GROUND_TINT, GROUND_TINT + 1, size=3)
    return Scene(tag, line["prompt"], shapes, tuple(int(level) for level in ground))


def render(scene: Scene, size: int = 32) -> NDArray[np.uint8]:
    """Draw a scene as an antialiased RGB picture (size, size, 3)."""
    picture = np.empty((size, size, 3))
    picture[:] = scene.ground
    for shape in scene.shapes:
        alpha = coverage(shape.name, shape.x * size, shape.y * size, shape.size * size, size, size)[:, :, None]
        picture += alpha * (np.array(COLOURS[shape.colour]) - picture)
    return np.rint(picture).astype(np.uint8)


def _relation(line: Line) -> str | None:
    """The relation of the line's second shape to its first, or None if it states none."""
    return line["include"][-1].get("position", [None])[0]


def _sample_colours(rng: np.random.Generator, line: Line) -> list[str]:
    """A colour for each shape: the stated one, or any."""
    if "color" in line["include"][0]:
        return [need["color"] for need in line["include"]]
    count = sum(need["count"] for need in line["include"])
    return [tuple(COLOURS)[index] for index in rng.integers(len(COLOURS), size=count)]


def _sample_places(rng: np.random.Generator, sizes: NDArray[np.floating], relation: str | None) -> NDArray[np.floating]:
    """Centres (shapes, 2) on the lattice, drawn uniformly from all layouts that fit.

    A layout fits if it keeps all gaps, and shape 1 stands in `relation` to shape 0.
    """
    while True:
        layouts = rng.integers(1, LATTICE, size=(LAYOUTS_AT_ONCE, len(sizes), 2)) / LATTICE
        edges = (sizes + EDGE)[:, None]
        fits = ((layouts >= edges) & (layouts <= 1 - edges)).all(axis=(1, 2))
        for a, b in combinations(range(len(sizes)), 2):
            fits &= np.abs(layouts[:, a] - layouts[:, b]).max(axis=1) >= sizes[a] + sizes[b] + GAP
        if relation is not None:
            axis, sign = _AXES[relation]
            offset = layouts[:, 1] - layouts[:, 0]
            fits &= sign * offset[:, axis] >= STEEPNESS * np.abs(offset[:, 1 - axis])
        if fits.any():
            return layouts[fits.argmax()]
