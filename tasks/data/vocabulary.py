"""What scenes can say: shapes, colours, relations, GenEval's prompt lines over them, and which are held out.

A *line* is a prompt in GenEval's schema: {"tag", "include": [need, ...], ["exclude": [need, ...],] "prompt"}, where a
need is {"class", "count"[, "color"][, "position": [relation, index of the other need]]}. `lines(tag)` has every line of
a task, so that the sampler of training scenes and the evaluation draw from one list, and `is_held_out` splits it.

Held out, that is never in a training picture:

* a colour on one shape of each colour (`HELD_OUT_COLOURS`: 10 of 60 pairs), stated in the caption or not;
* three pairs of shapes (`HELD_OUT_PAIRS`: 3 of 15), so each shape still meets four others;
* positions: what has a held-out pair of shapes, and one arrangement of every second other pair (`HELD_OUT_PLACES`),
  together 36 of 120 captions; "a left of b" and "b right of a" are one arrangement. Only position scenes avoid it: an
  arrangement that no caption states is not learned from words;
* colour attributes: what has a held-out colour or pair, and a hashed tenth of the rest, in any scene with two shapes.

Single objects and counts have too few combinations to hold any out.
"""

from functools import cache
from itertools import combinations, permutations
from typing import Any

from tasks.seeds import derive

Line = dict[str, Any]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
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
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

HELD_OUT_COLOURS = {
    "red": "triangle",
    "orange": "circle",
    "yellow": "cross",
    "green": "ring",
    "blue": "diamond",
    "purple": "square",
    "pink": "circle",
    "brown": "cross",
    "black": "triangle",
    "white": "ring",
}
HELD_OUT_PAIRS = frozenset(
    {frozenset({"circle", "cross"}), frozenset({"square", "ring"}), frozenset({"triangle", "diamond"})}
)
HELD_OUT_ATTRIBUTES_SHARE = 10
"""One in this many colour attributes is held out by a hash, besides those with a held-out colour or pair."""


def _held_out_places() -> frozenset[tuple[str, str, str]]:
    """(shape, relation, shape) for every second pair that is not held out, turning through the relations."""
    pairs = [pair for pair in combinations(SHAPES, 2) if frozenset(pair) not in HELD_OUT_PAIRS]
    places = [(a, RELATIONS[turn % 4], b) for turn, (a, b) in enumerate(pairs[::2])]
    return frozenset(places + [(b, OPPOSITE[relation], a) for a, relation, b in places])


HELD_OUT_PLACES = _held_out_places()


def colour_is_held_out(colour: str, shape: str) -> bool:
    """True where no training picture shows this shape in this colour."""
    return HELD_OUT_COLOURS[colour] == shape


def attributes_are_held_out(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """True where no training picture shows these two (colour, shape) together; the order does not matter."""
    if colour_is_held_out(*first) or colour_is_held_out(*second):
        return True
    if frozenset({first[1], second[1]}) in HELD_OUT_PAIRS:
        return True
    low, high = sorted((first, second))
    return derive(0, "held-out attributes", *low, *high) % HELD_OUT_ATTRIBUTES_SHARE == 0


def is_held_out(line: Line) -> bool:
    """True where the line's combination is never in a training picture."""
    include = line["include"]
    shapes = [need["class"] for need in include]
    match line["tag"]:
        case "two_object":
            return frozenset(shapes) in HELD_OUT_PAIRS
        case "colors":
            return colour_is_held_out(include[0]["color"], shapes[0])
        case "position":
            place = (shapes[1], include[1]["position"][0], shapes[0])
            return frozenset(shapes) in HELD_OUT_PAIRS or place in HELD_OUT_PLACES
        case "color_attr":
            first, second = ((need["color"], need["class"]) for need in include)
            return attributes_are_held_out(first, second)
    return False


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
