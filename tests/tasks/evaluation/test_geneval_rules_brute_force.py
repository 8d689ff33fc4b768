"""GenEval's rules, said plainly and apart from the project's code: verdicts and reasons on detections drawn afresh.

The statement below follows the published description: per class the objects above a threshold (0.3, or 0.9 where
objects are counted), of equal scores the last first, at most 16, optionally without those that overlap a better one;
everything in `include`, nothing in `exclude`; colours and places of the best objects only.
"""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tasks.data.scene_vocabulary import TASKS
from tasks.evaluation.detectors.detector import Detection, Thresholds
from tasks.evaluation.geneval_rules import judge_picture, overlap
from tasks.evaluation.prompts.object_class_names import class_names

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
PLACES = ["left of", "right of", "above", "below"]
NO_MASK = np.zeros((1, 1), dtype=bool)
ROUNDS = 800

Box = tuple[float, float, float, float]


# -- the rules, by brute force -------------------------------------------------------------------------------------


def length_shared(low_a: float, high_a: float, low_b: float, high_b: float) -> float:
    """Of two intervals that include their last pixel."""
    return max(0.0, min(high_a, high_b) - max(low_a, low_b) + 1)


def intersection_over_union(a: Box, b: Box) -> float:
    both = length_shared(a[0], a[2], b[0], b[2]) * length_shared(a[1], a[3], b[1], b[3])
    own = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return both / (own[0] + own[1] - both)


def places_of(a: Box, b: Box) -> list[str]:
    offset = [(a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2]
    shrunk = []
    for axis in (0, 1):
        sizes = (a[axis + 2] - a[axis]) + (b[axis + 2] - b[axis])
        rest = abs(offset[axis]) - 0.1 * sizes
        shrunk.append(0.0 if rest < 0 else math.copysign(rest, offset[axis]))
    if abs(shrunk[0]) < 1e-3 and abs(shrunk[1]) < 1e-3:
        return []
    x, y = (value / math.sqrt(offset[0] ** 2 + offset[1] ** 2) for value in shrunk)
    return [place for place, true in zip(PLACES, (x < -0.5, x > 0.5, y < -0.5, y > 0.5), strict=True) if true]


def counted(line: dict[str, Any], found: list[Detection], limits: Thresholds) -> dict[str, list[Detection]]:
    least = limits.counting if line["tag"] == "counting" else limits.detection
    groups = {}
    for name in {one.class_name for one in found}:
        named = [one for one in found if one.class_name == name]
        order = np.argsort([one.score for one in named], kind="stable")[::-1]
        waiting = [named[place] for place in order if named[place].score > least][: limits.max_objects]
        groups[name] = []
        while waiting:
            best = waiting.pop(0)
            groups[name].append(best)
            if limits.max_overlap != 1:
                free = [one for one in waiting if intersection_over_union(best.box, one.box) < limits.max_overlap]
                waiting = free
    return groups


def published_verdict(
    line: dict[str, Any], found: list[Detection], colour_of: dict[int, str], limits: Thresholds
) -> tuple[bool, str]:
    objects, reasons, fulfilled = counted(line, found, limits), [], {}
    for index, wish in enumerate(line["include"]):
        name, number = wish["class"], wish["count"]
        best = objects.get(name, [])[:number]
        before = len(reasons)
        if len(best) < number:
            reasons.append(f"expected {name}>={number}, found {len(best)}")
        elif "color" in wish and sum(colour_of[id(one)] == wish["color"] for one in best) < number:
            tally = Counter(colour_of[id(one)] for one in best)
            seen = ", ".join(f"{tally[colour]} {colour}" for colour in COLOURS if tally[colour])
            wanted = wish["color"]
            reasons.append(f"expected {wanted} {name}>={number}, found {tally[wanted]} {wanted}; and {seen}")
        elif "position" in wish:
            place, target = wish["position"]
            if target not in fulfilled:
                reasons.append(f"no target for {name} to be {place}")
            else:
                pairs = [places_of(one.box, other.box) for one in best for other in fulfilled[target]]
                wrong = [" and ".join(places) for places in pairs if place not in places]
                if wrong:
                    reasons.append(f"expected {name} {place} target, found {wrong[0]} target")
        if len(reasons) == before:
            fulfilled[index] = best
    for wish in line.get("exclude", []):
        number = len(objects.get(wish["class"], []))
        if number >= wish["count"]:
            reasons.append(f"expected {wish['class']}<{wish['count']}, found {number}")
    return not reasons, "\n".join(reasons)


# -- prompts and detections at random ------------------------------------------------------------------------------


def draw_line(tag: str, chance: random.Random) -> dict[str, Any]:
    first, second = chance.sample(class_names(), 2)
    number = chance.randint(2, 4)
    include = {
        "single_object": [{"class": first, "count": 1}],
        "two_object": [{"class": first, "count": 1}, {"class": second, "count": 1}],
        "counting": [{"class": first, "count": number}],
        "colors": [{"class": first, "count": chance.choice([1, 1, 2]), "color": chance.choice(COLOURS)}],
        "position": [
            {"class": first, "count": chance.choice([1, 1, 2])},
            {"class": second, "count": chance.choice([1, 1, 2]), "position": [chance.choice(PLACES), 0]},
        ],
        "color_attr": [
            {"class": first, "count": 1, "color": chance.choice(COLOURS)},
            {"class": second, "count": 1, "color": chance.choice(COLOURS)},
        ],
    }[tag]
    line = {"tag": tag, "include": include, "prompt": "a photo"}
    return line | ({"exclude": [{"class": first, "count": number + 1}]} if tag == "counting" else {})


def draw_box(before: list[Detection], chance: random.Random) -> Box:
    if before and chance.random() < 0.15:  # on top of another, or nearly
        shift = chance.choice([0.0, chance.uniform(-3, 3)])
        return tuple(edge + shift for edge in chance.choice(before).box)
    x, y = chance.uniform(0, 400), chance.uniform(0, 400)
    return x, y, x + chance.uniform(4, 110), y + chance.uniform(4, 110)


def draw_detections(line: dict[str, Any], chance: random.Random) -> tuple[list[Detection], dict[int, str]]:
    asked = [wish["class"] for wish in line["include"]]
    found, colours = [], {}
    for _ in range(chance.choice([0, 1, 2, 3, 4, 5, 6, 8, 60])):
        name = chance.choice(asked) if chance.random() < 0.85 else chance.choice(class_names())
        score = chance.choice([chance.random(), chance.uniform(0.85, 1.0), 0.3, 0.9, 0.95])
        detection = Detection(name, score, draw_box(found, chance), NO_MASK)
        wanted = [wish["color"] for wish in line["include"] if wish["class"] == name and "color" in wish]
        colours[id(detection)] = wanted[0] if wanted and chance.random() < 0.7 else chance.choice(COLOURS)
        found.append(detection)
    return found, colours


@pytest.mark.parametrize("tag", TASKS)
def test_every_verdict_and_reason_is_that_of_the_published_rules(tag: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance, verdicts = random.Random(seed), Counter()
    for _ in range(ROUNDS):
        overlap = chance.choice([1.0, 1.0, chance.uniform(0.05, 0.95)])
        limits = Thresholds() if overlap == 1 else Thresholds(max_overlap=overlap)
        line = draw_line(tag, chance)
        found, colours = draw_detections(line, chance)
        verdict = judge_picture(line, found, lambda some, of=colours: [of[id(one)] for one in some], limits)
        assert (verdict.correct, verdict.reason) == published_verdict(line, found, colours, limits), line
        verdicts[verdict.correct] += 1
    assert min(verdicts[True], verdicts[False]) > ROUNDS / 50


def test_every_overlap_is_that_of_the_published_rules() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        (ax, ay), (bx, by) = ((chance.uniform(0, 9), chance.uniform(0, 9)) for _ in range(2))
        a, b = ((x, y, x + chance.uniform(1, 9), y + chance.uniform(1, 9)) for x, y in ((ax, ay), (bx, by)))
        assert overlap(a, b) == pytest.approx(intersection_over_union(a, b), rel=1e-12)


def test_the_statement_gives_every_kind_of_reason() -> None:
    chance, reasons = random.Random(0), set()
    for _ in range(2000):
        line = draw_line(chance.choice(TASKS), chance)
        found, colours = draw_detections(line, chance)
        reasons |= set(published_verdict(line, found, colours, Thresholds())[1].splitlines())
    for part in (">=1, found 0", "; and ", "no target for", " target, found ", "<4, found ", "found 16", " and above"):
        assert any(part in reason for reason in reasons), part
