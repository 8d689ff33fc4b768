"""Claims about GenEval's rules, against a second statement of them in exact arithmetic, on random detections."""

import json
from fractions import Fraction

import numpy as np
import pytest

from tasks.data.scene_vocabulary import COLOURS, RELATIONS, SHAPES, TASKS, lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.detector import Detection, Thresholds
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.geneval_rules import judge_picture, overlap
from tasks.evaluation.picture_scoring import score_pictures
from tasks.evaluation.relative_position import relations
from tests.helpers.published_geneval import PROMPTS, needs_published

EMPTY = np.zeros((1, 1), dtype=bool)


def thing(name: str, score: float, box: tuple[float, float, float, float] = (0, 0, 4, 4)) -> Detection:
    return Detection(name, score, box, EMPTY)


def line_of(prompt: str) -> dict:
    return next(line for tag in TASKS for line in lines(tag) if line["prompt"] == f"a photo of {prompt}")


def no_colours(_detections) -> list[str]:
    raise AssertionError("this prompt asks for no colour")


# -- a second statement of the rules -------------------------------------------------------------------------------


def exact_relations(a, b) -> set[str]:
    held = set()
    offset = [Fraction(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    length_squared = offset[0] ** 2 + offset[1] ** 2
    for i, (towards_low, towards_high) in enumerate([("left of", "right of"), ("above", "below")]):
        margin = Fraction(1, 10) * Fraction(abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]))
        beyond = max(abs(offset[i]) - margin, 0)
        if beyond > 0 and 4 * beyond**2 > length_squared:
            held.add(towards_low if offset[i] < 0 else towards_high)
    return held


def exact_overlap(a, b) -> Fraction:
    def pixels(box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    both = pixels(a) | pixels(b)
    return Fraction(len(pixels(a) & pixels(b)), len(both))


def exact_verdict(line, detections, colour_of, thresholds) -> bool:
    least = thresholds.counting if line["tag"] == "counting" else thresholds.detection

    def best(name):
        indices = [i for i, d in enumerate(detections) if d.class_name == name and d.score > least]
        waiting = [detections[i] for i in sorted(indices, key=lambda i: (-detections[i].score, -i))][
            : thresholds.max_objects
        ]
        kept = []
        while waiting:
            first, *waiting = waiting
            kept.append(first)
            if thresholds.max_overlap < 1:
                waiting = [d for d in waiting if exact_overlap(first.box, d.box) < Fraction(thresholds.max_overlap)]
        return kept

    groups, fine = [], []
    for need in line["include"]:
        group = best(need["class"])[: need["count"]]
        good = len(group) == need["count"]
        if good and "color" in need:
            good = all(colour_of[id(d)] == need["color"] for d in group)
        if good and "position" in need:
            target = groups[need["position"][1]]
            good = target is not None and all(
                need["position"][0] in exact_relations(d.box, t.box) for d in group for t in target
            )
        groups.append(group if good else None)
        fine.append(good)
    return all(fine) and all(len(best(need["class"])) < need["count"] for need in line.get("exclude", []))


@pytest.mark.parametrize("tag", TASKS)
@pytest.mark.parametrize("max_overlap", [1.0, 0.5])
def test_verdicts_equal_a_second_statement_of_the_rules(tag, max_overlap):
    rng = np.random.default_rng(TASKS.index(tag))
    thresholds = Thresholds(detection=0.3, counting=0.6, max_objects=3, max_overlap=max_overlap)
    choices = lines(tag)
    verdicts = []
    for _ in range(400):
        line = choices[rng.integers(len(choices))]
        wanted = [need["class"] for need in line["include"]]
        detections, colour_of = [], {}
        for _ in range(rng.integers(1, 7)):
            name = wanted[rng.integers(len(wanted))] if rng.random() < 0.8 else SHAPES[rng.integers(6)]
            x, y, width, height = (int(value) for value in rng.integers(0, 12, size=4))
            found = thing(name, rng.integers(0, 11) / 10, (x, y, x + width + 1, y + height + 1))
            stated = [need["color"] for need in line["include"] if need["class"] == name and "color" in need]
            other = tuple(COLOURS)[rng.integers(len(COLOURS))]
            colour_of[id(found)] = stated[0] if stated and rng.random() < 0.7 else other
            detections.append(found)
        verdict = judge_picture(line, detections, lambda ds, of=colour_of: [of[id(d)] for d in ds], thresholds)
        assert verdict.correct == exact_verdict(line, detections, colour_of, thresholds)
        assert verdict.correct == (verdict.reason == "")
        verdicts.append(verdict.correct)
    assert 0.02 < np.mean(verdicts) < 0.98


def test_of_equal_scores_the_last_counts():
    line = line_of("a red circle")
    red, blue = thing("circle", 0.9), thing("circle", 0.9, (8, 8, 12, 12))
    for found, correct in (([red, blue], False), ([blue, red], True), ([red, thing("circle", 0.8)], True)):
        verdict = judge_picture(line, found, lambda some: ["red" if one is red else "blue" for one in some])
        assert verdict.correct == correct


def test_relations_equal_exact_arithmetic():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(3000):
        (ax, ay, bx, by), sizes = rng.integers(0, 20, size=4), rng.integers(1, 12, size=4)
        a = tuple(map(int, (ax, ay, ax + sizes[0], ay + sizes[1])))
        b = tuple(map(int, (bx, by, bx + sizes[2], by + sizes[3])))
        assert set(relations(a, b)) == exact_relations(a, b)
        seen.add(relations(a, b))
    assert len(seen) == 9  # none, four, and four diagonals


def test_relations_need_more_than_a_tenth_of_the_extents():
    assert relations((2, 0, 12, 10), (0, 0, 10, 10)) == ()  # centres 2 apart, margin 0.1 * (10 + 10)
    assert relations((5, 0, 15, 10), (0, 0, 10, 10)) == ("right of",)  # beyond the margin by 3 of 5
    assert relations((4, 0, 14, 10), (0, 0, 10, 10)) == ()  # by 2 of 4: exactly one half is not enough


def test_overlap_counts_the_last_pixel():
    assert overlap((0, 0, 1, 1), (1, 1, 2, 2)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (2, 0, 3, 1)) == 0


def test_an_overlap_at_the_limit_is_dropped_and_at_one_nothing_is():
    pair = [thing("ring", 0.95, (0, 0, 3, 3)), thing("ring", 0.94, (0, 0, 3, 1))]
    line = line_of("two rings")
    assert overlap(pair[0].box, pair[1].box) == 0.5
    assert not judge_picture(line, pair, no_colours, Thresholds(max_overlap=0.5)).correct
    assert judge_picture(line, pair, no_colours, Thresholds(max_overlap=0.51)).correct
    assert judge_picture(line, [pair[0]] * 2, no_colours, Thresholds(max_overlap=1.0)).correct


def test_a_score_at_the_threshold_does_not_count():
    line = line_of("a ring")
    assert not judge_picture(line, [thing("ring", 0.3)], no_colours).correct
    assert judge_picture(line, [thing("ring", 0.3000001)], no_colours).correct


def test_counting_has_a_threshold_of_its_own():
    two = line_of("two rings")
    assert judge_picture(two, [thing("ring", s) for s in (0.95, 0.91, 0.9)], no_colours).correct
    verdict = judge_picture(two, [thing("ring", 0.95)] * 3, no_colours)
    assert (verdict.correct, verdict.reason) == (False, "expected ring<3, found 3")


def test_extra_objects_are_wrong_only_in_counting():
    crowd = [thing("ring", 0.99)] * 5 + [thing("cross", 0.99)] * 2
    assert judge_picture(line_of("a ring"), crowd, no_colours).correct
    assert not judge_picture(line_of("four rings"), crowd, no_colours).correct


def test_only_the_best_objects_of_a_class_are_asked_for_colour():
    line = line_of("a red ring")
    found = [thing("ring", 0.5, (0, 0, 1, 1)), thing("ring", 0.8, (5, 5, 9, 9))]
    colours = {(0, 0, 1, 1): "red", (5, 5, 9, 9): "blue"}
    verdict = judge_picture(line, found, lambda ds: [colours[d.box] for d in ds])
    assert (verdict.correct, verdict.reason) == (False, "expected red ring>=1, found 0 red; and 1 blue")


def test_reasons_use_geneval_s_words():
    line = line_of("a ring left of a cross")
    apart = [thing("cross", 0.9, (0, 0, 4, 4)), thing("ring", 0.9, (10, 0, 14, 4))]
    assert judge_picture(line, apart, no_colours).reason == "expected ring left of target, found right of target"
    assert judge_picture(line, apart[1:], no_colours).reason == (
        "expected cross>=1, found 0\nno target for ring to be left of"
    )


def test_at_most_the_best_sixteen_of_a_class_count():
    line = {"tag": "counting", "include": [{"class": "ring", "count": 17}], "prompt": ""}
    verdict = judge_picture(line, [thing("ring", 0.95)] * 20, no_colours)
    assert verdict.reason == "expected ring>=17, found 16"


@pytest.mark.parametrize("tag", TASKS)
def test_drawn_training_scenes_are_correct_for_their_captions_and_not_for_others(tag):
    rng = np.random.default_rng(2)
    by_prompt = {line["prompt"]: line for line in lines(tag)}
    detector, right, wrong = SceneDetector(), [], []
    for _ in range(30):
        scene = sample_scene(rng, tag)
        other = next(line for line in lines(tag) if not set(parts(line)) <= set(parts(by_prompt[scene.caption])))
        picture = render(scene)[None]
        right.append(score_pictures(by_prompt[scene.caption], picture, detector)[0].correct)
        if tag != "colors":
            wrong.append(score_pictures(other, picture, detector)[0].correct)
    assert np.mean(right) >= 0.97
    assert not any(wrong)


def parts(line: dict) -> list[tuple]:
    return [(need["class"],) for need in line["include"]]


@needs_published
def test_geneval_s_published_prompts_can_be_judged():
    published = [json.loads(row) for row in PROMPTS.read_text().splitlines()]
    assert {line["tag"] for line in published} == set(TASKS) and len(published) == 553
    named = {need.get("color") for line in published for need in line["include"]} - {None}
    placed = {need["position"][0] for line in published for need in line["include"] if "position" in need}
    assert named == set(COLOURS) and placed == set(RELATIONS)
    toward = {"left of": (-20, 0), "right of": (20, 0), "above": (0, -20), "below": (0, 20)}
    for line in published:
        assert not judge_picture(line, [], no_colours).correct
        detections, colours = [], {}
        for need in line["include"]:
            dx, dy = toward[need["position"][0]] if "position" in need else (0, 0)
            for _ in range(need["count"]):
                detections.append(thing(need["class"], 0.95, (40 + dx, 40 + dy, 50 + dx, 50 + dy)))
                colours[need["class"]] = need.get("color", "")
        verdict = judge_picture(line, detections, lambda ds, of=colours: [of[d.class_name] for d in ds])
        assert verdict.correct, verdict.reason
