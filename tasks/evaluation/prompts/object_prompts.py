"""Prompts over COCO's 80 classes in GenEval's words. A judge is trained and measured on them.

GenEval's own prompts are kept for scores alone. The prompts here are drawn at random, as GenEval's were, and leave out
the combinations that GenEval's state.
"""

from collections.abc import Iterable

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import COLOURS, NUMBERS, RELATIONS, TASKS, Line, combination
from tasks.evaluation.prompts.evaluation_prompts import Prompt, take_turns
from tasks.evaluation.prompts.object_class_names import class_names

TRIES = 3
"""Lines drawn for each prompt that is asked for, because some come twice and some are taken."""


def object_prompts(seed: int, purpose: str, count: int, taken: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` prompts of different combinations; the tasks take turns. `purpose` names their random stream.

    Combinations that the `taken` prompts state are left out. If that leaves a task nothing, it keeps all that were
    drawn (single_object, where GenEval's own prompts name all classes).
    """
    stated = {combination(prompt.line) for prompt in taken}
    queues = []
    for tag in TASKS:
        rng = numpy_generator(seed, purpose, tag)
        drawn = {combination(line): line for line in (draw_line(tag, rng) for _ in range(TRIES * count))}
        free = [line for said, line in drawn.items() if said not in stated]
        queues.append(free or list(drawn.values()))
    return [Prompt(line, seen=None) for line in take_turns(queues)][:count]


def draw_line(tag: str, rng: np.random.Generator) -> Line:
    """A line of one of GenEval's six tasks, over classes, colours, numbers and relations drawn at random.

    As in GenEval, a person has no colour, and two objects are of two classes.
    """
    names = class_names()[1:] if tag in ("colors", "color_attr") else class_names()  # the first is "person"
    place = int(rng.integers(len(names)))
    a, b = names[place], names[(place + int(rng.integers(1, len(names)))) % len(names)]
    colour, other_colour = (list(COLOURS)[rng.integers(len(COLOURS))] for _ in range(2))
    match tag:
        case "single_object":
            return _line(tag, with_article(a), {"class": a})
        case "two_object":
            return _line(tag, f"{with_article(a)} and {with_article(b)}", {"class": a}, {"class": b})
        case "counting":
            number = int(rng.choice(list(NUMBERS)))
            line = _line(tag, f"{NUMBERS[number]} {plural(a)}", {"class": a, "count": number})
            return line | {"exclude": [{"class": a, "count": number + 1}]}
        case "colors":
            return _line(tag, with_article(f"{colour} {a}"), {"class": a, "color": colour})
        case "position":
            relation = RELATIONS[rng.integers(len(RELATIONS))]
            words = f"{with_article(a)} {relation} {with_article(b)}"
            return _line(tag, words, {"class": b}, {"class": a, "position": [relation, 0]})
        case "color_attr":
            words = f"{with_article(f'{colour} {a}')} and {with_article(f'{other_colour} {b}')}"
            return _line(tag, words, {"class": a, "color": colour}, {"class": b, "color": other_colour})
    raise ValueError(f"task {tag!r} is unknown: use one of {', '.join(TASKS)}")


def with_article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    """The plural of a class's name, as GenEval spells it."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _line(tag: str, what: str, *include: Line) -> Line:
    needs = [{"class": need["class"], "count": 1} | need for need in include]
    return {"tag": tag, "include": needs, "prompt": f"a photo of {what}"}
