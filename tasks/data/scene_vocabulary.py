"""The vocabulary of scenes: shapes, colours, relations, GenEval's prompt lines over them, and the held-out lines.

A *line* is a prompt in GenEval's schema: {"tag", "include": [need, ...], ["exclude": [need, ...],] "prompt"}, where a
need is {"class", "count"[, "color"][, "position": [relation, index of the other need]]}. `lines(tag)` has every line of
a task. The sampler of training scenes and the evaluation draw from this one list, and `is_held_out` splits it.

A held-out line is never the caption of a training picture. Each task with enough combinations has a fixed number of
them held out (`HELD_OUT`). The order of words does not matter: "a ring left of a cross" and "a cross right of a ring"
are held out together. Single objects and counts have too few combinations to hold any out. Training shows the colours,
shapes and pairs of a held-out caption under other captions. So a held-out caption asks a model to read words that it
knows in a new combination.
"""

from functools import cache
from itertools import permutations
from typing import Any

from tasks.computing.seeds import derive

Line = dict[str, Any]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 30),
    "orange": (250, 125, 10),
    "yellow": (250, 230, 40),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "purple": (130, 35, 165),
    "pink": (255, 105, 185),
    "brown": (120, 70, 25),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
}
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

HELD_OUT = {"two_object": 3, "colors": 10, "position": 12, "color_attr": 135}
"""The number of held-out combinations of each task, out of 15, 60, 60 and 1,350."""


def combination(line: Line) -> tuple[str, ...]:
    """What a line states, whatever the order of its words.

    "a ring left of a cross" and "a cross right of a ring" are the same combination.
    """
    if line["tag"] == "position" and len(line["include"]) == 2 and "position" in line["include"][1]:
        target, placed = line["include"]  # a line of a user's own file may have this tag and other objects
        relation = placed["position"][0]
        names = placed["class"], target["class"]
        axis = "across" if relation in ("left of", "right of") else "down"
        return (axis, *(names if relation in ("left of", "above") else reversed(names)))
    stated = (f"{need['count']} {need.get('color', 'any')} {need['class']}" for need in line["include"])
    return (line["tag"], *sorted(stated))


@cache
def held_out_combinations(tag: str) -> frozenset[tuple[str, ...]]:
    """The combinations of a task that no caption of a training picture states: those with the lowest hashes."""
    combinations = {combination(line) for line in lines(tag)}
    # The seed is 0 whatever `compute.seed` is: models of all seeds share the split.
    return frozenset(sorted(combinations, key=lambda one: derive(0, "held out", *one))[: HELD_OUT.get(tag, 0)])


def is_held_out(line: Line) -> bool:
    """Whether no caption of a training picture states the line's combination."""
    return combination(line) in held_out_combinations(line["tag"])


@cache
def lines(tag: str) -> tuple[Line, ...]:
    """Every line of the task `tag` in a fixed order: 6, 30, 18, 60, 120 and 2,700 lines, in the order of `TASKS`."""
    match tag:
        case "single_object":
            return tuple(_line(tag, _a(shape), [_need(shape)]) for shape in SHAPES)
        case "two_object":
            return tuple(_line(tag, f"{_a(a)} and {_a(b)}", [_need(a), _need(b)]) for a, b in permutations(SHAPES, 2))
        case "counting":
            return tuple(_counting_line(shape, count) for shape in SHAPES for count in NUMBERS)
        case "colors":
            return tuple(
                _line(tag, _a(f"{colour} {shape}"), [_need(shape, color=colour)])
                for colour in COLOURS
                for shape in SHAPES
            )
        case "position":
            return tuple(_position_line(a, relation, b) for a, b in permutations(SHAPES, 2) for relation in RELATIONS)
        case "color_attr":
            return tuple(
                _line(tag, f"{_a(f'{p} {a}')} and {_a(f'{q} {b}')}", [_need(a, color=p), _need(b, color=q)])
                for a, b in permutations(SHAPES, 2)
                for p, q in permutations(COLOURS, 2)
            )
    raise ValueError(f"task {tag!r} is unknown: use one of {', '.join(TASKS)}")


@cache
def seen_lines(tag: str) -> tuple[Line, ...]:
    """The lines of a task that training scenes are drawn from."""
    return tuple(line for line in lines(tag) if not is_held_out(line))


def _need(shape: str, count: int = 1, **more: Any) -> Line:
    return {"class": shape, "count": count, **more}


def _line(tag: str, what: str, include: list[Line]) -> Line:
    return {"tag": tag, "include": include, "prompt": f"a photo of {what}"}


def _counting_line(shape: str, count: int) -> Line:
    plural = f"{shape}es" if shape.endswith("s") else f"{shape}s"
    line = _line("counting", f"{NUMBERS[count]} {plural}", [_need(shape, count)])
    return {**line, "exclude": [_need(shape, count + 1)]}


def _position_line(a: str, relation: str, b: str) -> Line:
    return _line("position", f"{_a(a)} {relation} {_a(b)}", [_need(b), _need(a, position=[relation, 0])])


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
