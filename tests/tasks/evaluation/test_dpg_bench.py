"""DPG-Bench's questions are read, their answers counted and summed up as the published script does, row by row."""

from pathlib import Path

import numpy as np
import pytest

from tasks.evaluation.dpg_bench import (
    Question,
    QuestionedPrompt,
    cut_grid,
    read_questions,
    summarize_answers,
    with_dependencies,
)
from tasks.system.errors import UserError

HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)
YES, NO, NEITHER = np.log(0.9), np.log(0.2), np.nan


def question(number: int, *parents: int, category: str = "entity - whole") -> Question:
    return Question(number, f"question {number}?", parents, category)


def as_published(questions: tuple[Question, ...], yes: list[bool]) -> list[float]:
    """One picture's scores, zeroed in the order of the questions where a parent's score is 0 by then."""
    scores = {one.number: float(answer) for one, answer in zip(questions, yes, strict=True)}
    for one in questions:
        if any(scores[parent] == 0 for parent in one.parents):
            scores[one.number] = 0
    return list(scores.values())


def test_a_question_counts_as_no_where_one_that_it_depends_on_does() -> None:
    questions = (question(1), question(2, 1), question(3, 1, 2), question(4))
    yes_NQ = np.array([[False, True, True, True], [True, False, True, True], [True, True, True, False]])
    counted = with_dependencies(questions, yes_NQ)
    assert counted.tolist() == [[False, False, False, True], [True, False, False, True], [True, True, True, False]]
    assert yes_NQ[0, 1]  # the answers themselves stay


def test_dependencies_are_followed_in_the_order_of_the_file_as_published() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        numbers = [int(number) for number in rng.permutation(6) + 1]
        questions = tuple(
            question(number, *(int(p) for p in rng.choice(6, rng.integers(3), replace=False) + 1)) for number in numbers
        )
        yes = [bool(answer) for answer in rng.integers(2, size=6)]
        assert with_dependencies(questions, np.array([yes]))[0].tolist() == as_published(questions, yes)


def test_a_dependency_on_a_question_that_is_not_there_is_passed_over() -> None:
    assert with_dependencies((question(1, 7),), np.array([[True]])).tolist() == [[True]]


def test_all_rows_are_read_the_first_too_and_the_last_of_a_number_holds(tmp_path: Path) -> None:
    (tmp_path / "dpg.csv").write_text(
        HEAD + 'a,"a cup, red",,1,0,entity,whole,entity - whole (cup),Is there a cup?\n'
        'a,,,2,1,attribute,color,"attribute - color (cup, red)",Is it red?\n'
        "b,a dog,,1,0,entity,whole,entity - whole (cat),Is there a cat?\n"
        'b,a dog,,1,"0",entity,whole,entity - whole (dog),Is there a dog?\n'
        'a,,,3,"1, 2",other,count,other - count (cup==1),Is it one?\n'
    )
    assert read_questions(tmp_path / "dpg.csv") == [
        QuestionedPrompt(
            "a",
            "a cup, red",
            (
                Question(1, "Is there a cup?", (), "entity - whole"),
                Question(2, "Is it red?", (1,), "attribute - color"),
                Question(3, "Is it one?", (1, 2), "other - count"),
            ),
        ),
        QuestionedPrompt("b", "a dog", (Question(1, "Is there a dog?", (), "entity - whole"),)),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id,text\na,b\n", "has no column proposition_id"),
        (HEAD, "holds no questions"),
        (HEAD + "a,a,,x,0,,,entity - whole (a),Is it?\n", "line 2: proposition_id 'x' and dependency '0'"),
        (HEAD + "a,a,,1,0,,,entity - whole (a),\n", "line 2 has no question_natural_language"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "dpg.csv").write_text(text)
    with pytest.raises(UserError) as refused:
        read_questions(tmp_path / "dpg.csv")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_scores_are_means_over_prompts_and_categories_shares_of_the_answers_themselves() -> None:
    prompts = [
        QuestionedPrompt("a", "", (question(1), question(2, 1, category="attribute - color"))),
        QuestionedPrompt("b", "", (question(1), question(2, category="entity - part"))),
    ]
    answers = [
        np.array([[YES, YES], [NO, YES], [NEITHER, NO]]),  # scores 1, 0 and 0
        np.array([[YES, NO]]),  # score 1/2; a prompt may have fewer pictures
    ]
    found = summarize_answers(prompts, answers, samples=500, seed=0)
    assert found["value"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert (found["prompts"], found["pictures"], found["questions"], found["neither"]) == (2, 4, 4, 1)
    assert found["categories"]["entity"]["value"] == pytest.approx(100 * 2 / 5)
    assert found["categories"]["attribute"]["value"] == pytest.approx(100 * 2 / 3)
    assert found["detailed"]["entity - whole"]["value"] == pytest.approx(100 * 2 / 4)
    # The bootstrap draws two prompts, of scores 1/3 and 1/2.
    assert (found["low"], found["high"]) == (pytest.approx(100 / 3), pytest.approx(50))


def test_four_pictures_of_a_file_lie_two_by_two() -> None:
    whole = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    parts = cut_grid(whole, 4)
    assert [part.shape for part in parts] == [(2, 3, 3)] * 4
    assert np.array_equal(np.block([[[parts[0]], [parts[1]]], [[parts[2]], [parts[3]]]]), whole)
    assert cut_grid(whole, 1)[0] is whole
    with pytest.raises(ValueError, match="5 by 4 pixels"):
        cut_grid(whole[:, :5], 4)
