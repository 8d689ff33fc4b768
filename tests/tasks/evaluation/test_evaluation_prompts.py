"""Models are asked the prompts that params say, half of them unseen; the judge avoids these in its training."""

from collections import Counter

import pytest

from tasks.data.scene_vocabulary import TASKS, combination, is_held_out, lines
from tasks.evaluation.prompts.evaluation_prompts import (
    Prompt,
    evaluation_prompts,
    judge_prompts,
    read_prompts,
    write_prompts,
)

EVALUATION = evaluation_prompts(seed=0, prompts_per_task=20)


def test_each_task_has_as_many_prompts_as_asked_or_as_exist():
    counts = Counter(prompt.tag for prompt in EVALUATION)
    assert counts == {
        "single_object": 6,
        "two_object": 20,
        "counting": 18,
        "colors": 20,
        "position": 20,
        "color_attr": 20,
    }
    assert [prompt.tag for prompt in EVALUATION] == sorted((p.tag for p in EVALUATION), key=TASKS.index)
    assert len({prompt.text for prompt in EVALUATION}) == len(EVALUATION)


def test_half_of_the_prompts_are_unseen_where_enough_exist():
    unseen = Counter(prompt.tag for prompt in EVALUATION if not prompt.seen)
    assert unseen == {"two_object": 6, "colors": 10, "position": 10, "color_attr": 10}
    assert all(prompt.seen == (not is_held_out(prompt.line)) for prompt in EVALUATION)


@pytest.mark.parametrize("count", [1, 2, 5, 30, 55, 10_000])
def test_counts_are_met_whatever_kind_runs_out(count):
    counts = Counter(prompt.tag for prompt in evaluation_prompts(0, count))
    assert counts == {tag: min(count, len(lines(tag))) for tag in TASKS}


def test_prompts_follow_the_seed_alone():
    assert evaluation_prompts(0, 20) == EVALUATION
    assert evaluation_prompts(1, 20) != EVALUATION
    assert judge_prompts(3, 50, EVALUATION) == judge_prompts(3, 50, EVALUATION)
    assert judge_prompts(3, 50, EVALUATION) != judge_prompts(4, 50, EVALUATION)


def test_the_judge_never_trains_on_what_it_will_be_asked_where_that_can_be_avoided():
    prompts = judge_prompts(0, 400, EVALUATION)
    asked = {combination(prompt.line) for prompt in EVALUATION}
    shared = {prompt.tag for prompt in prompts if combination(prompt.line) in asked}
    assert len({prompt.text for prompt in prompts}) == 400
    assert {prompt.tag for prompt in prompts} == set(TASKS)
    assert shared == {"single_object", "counting"}


def test_the_judge_trains_on_seen_combinations_only():
    assert not any(is_held_out(prompt.line) for prompt in judge_prompts(0, 10_000, EVALUATION))


def test_a_model_is_given_its_prompt_without_white_space_around_it(tmp_path):
    path = tmp_path / "prompts.json"
    write_prompts(path, [Prompt({"tag": "colors", "include": [], "prompt": " a photo of\ta red cup \n"}, seen=None)])
    assert [prompt.text for prompt in read_prompts(path)] == ["a photo of\ta red cup"]


def test_word_order_does_not_make_a_new_combination():
    by_prompt = {line["prompt"]: combination(line) for tag in TASKS for line in lines(tag)}
    for one, same in [
        ("a photo of a ring left of a cross", "a photo of a cross right of a ring"),
        ("a photo of a ring above a cross", "a photo of a cross below a ring"),
        ("a photo of a ring and a cross", "a photo of a cross and a ring"),
        ("a photo of a red ring and a blue cross", "a photo of a blue cross and a red ring"),
    ]:
        assert by_prompt[one] == by_prompt[same]
    for one, other in [
        ("a photo of a ring left of a cross", "a photo of a ring right of a cross"),
        ("a photo of a ring left of a cross", "a photo of a ring above a cross"),
        ("a photo of a red ring and a blue cross", "a photo of a blue ring and a red cross"),
        ("a photo of two rings", "a photo of three rings"),
        ("a photo of a ring", "a photo of a red ring"),
    ]:
        assert by_prompt[one] != by_prompt[other]
    assert len(set(by_prompt.values())) == 6 + 15 + 18 + 60 + 60 + 1350
