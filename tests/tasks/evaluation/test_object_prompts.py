"""Prompts over COCO's classes ask for what their words say, differ, and leave out what the evaluation asks."""

import json
from collections import Counter

import numpy as np
import pytest

from tasks.data.scene_vocabulary import TASKS, combination
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.prompts.object_prompts import draw_line, object_prompts, plural, with_article
from tasks.evaluation.prompts.prompt_lines import parse_line, read_lines
from tests.helpers.published_geneval import PROMPTS, needs_published


def spelled(line: dict) -> str:
    """The prompt of a line, from what the line asks for."""

    def thing(need: dict) -> str:
        return with_article(" ".join(part for part in (need.get("color"), need["class"]) if part))

    needs = line["include"]
    if line["tag"] == "counting":
        return f"a photo of {['two', 'three', 'four'][needs[0]['count'] - 2]} {plural(needs[0]['class'])}"
    if line["tag"] == "position":
        return f"a photo of {thing(needs[1])} {needs[1]['position'][0]} {thing(needs[0])}"
    return "a photo of " + " and ".join(map(thing, needs))


@pytest.mark.parametrize("tag", TASKS)
def test_a_line_asks_for_what_its_words_say(tag: str) -> None:
    rng = np.random.default_rng(TASKS.index(tag))
    for _ in range(200):
        line = draw_line(tag, rng)
        assert parse_line(json.dumps(line), "here") == line and line["tag"] == tag
        assert line["prompt"] == spelled(line)
        classes = [need["class"] for need in line["include"]]
        assert len(set(classes)) == len(classes)
        assert not any(need["class"] == "person" and "color" in need for need in line["include"])


@needs_published
def test_geneval_s_own_lines_are_of_the_same_words_and_none_is_asked_again() -> None:
    published = [Prompt(line, None) for line in read_lines(PROMPTS)]
    assert all(prompt.text == spelled(prompt.line) for prompt in published)
    drawn = object_prompts(0, "test", 600, published)
    stated = {combination(prompt.line) for prompt in published}
    assert {prompt.tag for prompt in drawn if combination(prompt.line) in stated} <= {"single_object"}


def test_prompts_are_different_take_turns_and_follow_from_the_seed() -> None:
    prompts = object_prompts(0, "test", 120, [])
    assert len({combination(prompt.line) for prompt in prompts}) == 120
    assert Counter(prompt.tag for prompt in prompts) == dict.fromkeys(TASKS, 20)
    assert prompts == object_prompts(0, "test", 120, [])
    assert prompts != object_prompts(1, "test", 120, []) != object_prompts(0, "other", 120, [])


def test_what_is_taken_is_left_out() -> None:
    taken = object_prompts(0, "test", 300, [])
    others = object_prompts(0, "test", 300, taken)
    assert len(others) == 300
    assert not {combination(prompt.line) for prompt in taken} & {combination(prompt.line) for prompt in others}
