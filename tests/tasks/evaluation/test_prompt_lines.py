"""Lines in GenEval's schema are read, GenEval's own included; one that no rule can judge is named."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks.data.scene_vocabulary import TASKS
from tasks.evaluation.detectors.detector_choice import check_classes
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.prompts.object_class_names import class_names
from tasks.evaluation.prompts.prompt_lines import named_classes, parse_line, read_lines
from tasks.system.errors import UserError
from tests.helpers.published_geneval import FOLDER, PROMPTS, needs_published

GOOD = {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "red"}], "prompt": "a photo of a red ring"}


def test_the_class_names_are_80_and_coco_s_under_geneval_s_names() -> None:
    names = class_names()
    assert len(names) == len(set(names)) == 80
    assert (names[0], names[63], names[64], names[65], names[66]) == (
        "person",
        "laptop",
        "computer mouse",
        "tv remote",
        "computer keyboard",
    )


@needs_published
def test_the_class_names_and_their_licence_are_geneval_s() -> None:
    assert class_names() == tuple((FOLDER / "object_names.txt").read_text().split("\n"))[:80]
    ours = Path(__file__).parents[3] / "tasks" / "evaluation" / "prompts" / "published"
    for name in ("object_names.txt", "LICENSE"):
        assert (ours / name).read_bytes() == (FOLDER / name).read_bytes()


@needs_published
def test_geneval_s_553_prompts_are_read_and_name_known_classes_only() -> None:
    lines = read_lines(PROMPTS)
    assert Counter(line["tag"] for line in lines) == dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    assert {name for line in lines for name in named_classes(line)} <= set(class_names())
    assert lines == [json.loads(row) for row in PROMPTS.read_text().splitlines()]


def test_any_tag_and_class_may_stand_in_a_line() -> None:
    line = {"tag": "my task", "include": [], "exclude": [{"class": "unicorn", "count": 1}], "prompt": "no unicorn"}
    assert parse_line(json.dumps(line), "here") == line
    assert parse_line(json.dumps(GOOD), "here") == GOOD


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"include": "ring"}, "include is 'ring', not a list"),
        ({"prompt": 3}, "prompt is 3, not text"),
        ({"include": [{"count": 1}]}, "include[0] has no class"),
        ({"include": [{"class": "ring", "count": 0}]}, "include[0] has count 0: it must be 1 or above"),
        ({"include": [{"class": "ring", "count": True}]}, "include[0] has count True"),
        ({"include": [{"class": "ring"}]}, "include[0] has count None"),
        ({"include": [{"class": "ring", "count": 1, "color": "teal"}]}, "include[0] has color 'teal'"),
        ({"include": [{"class": "ring", "count": 1, "position": ["left of", 0]}]}, "include[0] has position"),
        ({"include": [GOOD["include"][0], {"class": "a", "count": 1, "position": ["on", 0]}]}, "include[1] has pos"),
        ({"include": [GOOD["include"][0], {"class": "a", "count": 1, "position": 0}]}, "include[1] has position 0"),
        ({"exclude": [{"class": "ring"}]}, "exclude[0] has count None"),
    ],
)
def test_a_line_that_no_rule_can_judge_is_named_with_what_is_wrong(change: dict, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(UserError) as error:
        read_lines(path)
    assert str(error.value).startswith(f"{path} line 3 is no GenEval prompt line: {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "part"), [("", "is empty"), ("{", "line 1 cannot be read"), ("[]", "line 1 ")])
def test_a_file_without_lines_is_refused(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(text)
    with pytest.raises(UserError, match=part):
        read_lines(tmp_path / "lines.jsonl")
    with pytest.raises(UserError, match=r"missing\.jsonl cannot be read"):
        read_lines(tmp_path / "missing.jsonl")


def test_a_class_that_the_detector_cannot_find_is_refused_wherever_it_is_asked_for() -> None:
    check_classes([GOOD], SceneDetector())
    bench = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    excluded = GOOD | {"exclude": [{"class": "bench", "count": 1}]}
    for line in (bench, excluded):
        with pytest.raises(UserError, match="the detector scenes finds no 'bench', which the prompt 'a photo of a"):
            check_classes([GOOD, line], SceneDetector())
