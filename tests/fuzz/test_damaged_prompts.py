"""Any damage to files of prompts, questions, verdicts and digests is read or refused in one line."""

import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install -e '.[dev]' -c constraints.txt")

from hypothesis import example, given
from hypothesis import strategies as st

from tasks.data.published_files import published_path
from tasks.data.scene_vocabulary import combination
from tasks.evaluation.dpg_bench import read_questions, with_dependencies
from tasks.evaluation.geneval_folder import read_line, read_results
from tasks.evaluation.listed_pictures import read_listing, reference_pictures
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts, write_prompts
from tasks.evaluation.prompts.prompt_lines import named_classes, read_lines
from tasks.evaluation.verdict_store import VerdictStore
from tasks.generate import read_prompts as prompts_to_draw
from tasks.system.files import read_json
from tasks.system.manifest import damaged_files, verify_manifest, write_manifest
from tests.fuzz.damaged_bytes import damaged
from tests.fuzz.damaged_json import ODD_VALUES, damaged_json
from tests.fuzz.outcomes import outcome

Result = TypeVar("Result")
RING = {"class": "ring", "count": 1, "color": "red"}
CROSS = {"class": "cross", "count": 2, "position": ["left of", 0]}
LINE = {
    "tag": "position",
    "include": [RING, CROSS],
    "exclude": [{"class": "bar", "count": 1}],
    "prompt": "a photo of two crosses left of a red ring",
}


def reading(data: bytes, read: Callable[[Path], Result], name: str = "file") -> Result | None:
    """The outcome of reading a file of these bytes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(data)
        return outcome(lambda: read(path))


def use(path: Path) -> None:
    """What stages do with lines of GenEval: they ask for their classes and combinations, and write them."""
    lines = read_lines(path)
    for line in lines:
        assert all(isinstance(name, str) for name in named_classes(line))
        combination(line)
    write_prompts(path, [Prompt(line, None) for line in lines])
    assert [prompt.line for prompt in read_prompts(path)] == lines


@given(data=damaged_json(LINE) | damaged(json.dumps(LINE).encode() + b"\n" + json.dumps(LINE).encode()))
@example(data=json.dumps(LINE | {"include": [RING | {"color": ["red"]}]}).encode())
@example(data=json.dumps(LINE | {"include": [RING]}).encode())
@example(data=json.dumps(LINE | {"more": float("nan")}).encode())
@example(data=json.dumps(LINE).encode()[:-1] + b', "more": 1e999}')
@example(data=json.dumps(LINE | {"prompt": "\ud800"}).encode())
def test_any_damage_to_lines_of_geneval_is_read_or_refused(data: bytes) -> None:
    reading(data, use)


def test_a_line_of_geneval_ends_where_json_lines_end() -> None:
    line = LINE | {"prompt": "a photo\u2028 of a ring\x85"}
    text = json.dumps(line, ensure_ascii=False)
    assert reading(f"{text}\r\n{text}\n".encode(), read_lines) == [line, line]


@given(data=damaged_json(LINE))
def test_any_damage_to_the_line_of_a_folder_is_read_or_refused(data: bytes) -> None:
    reading(data, read_line)


@given(data=damaged_json([{"line": LINE, "seen": True}, {"line": LINE | {"tag": "matching"}, "seen": None}]))
def test_any_damage_to_written_prompts_is_read_or_refused(data: bytes) -> None:
    prompts = reading(data, read_prompts) or []
    assert all(isinstance(prompt.text, str) and isinstance(prompt.tag, str) for prompt in prompts)


@given(data=damaged("a photo of a ring\nder Kater trägt Schuhe\n".encode()))
def test_any_damage_to_a_file_of_prompts_is_read_or_refused(data: bytes) -> None:
    prompts = reading(data, lambda path: prompts_to_draw(Namespace(prompt=None, prompts=path))) or []
    assert all("\0" not in prompt and prompt.strip() == prompt != "" for prompt in prompts)


@given(prompt=st.text(max_size=5) | st.sampled_from(("\udcff", "\0")))
def test_any_prompt_on_the_command_line_is_read_or_refused(prompt: str) -> None:
    for text in outcome(lambda: prompts_to_draw(Namespace(prompt=prompt, prompts=None))) or []:
        text.encode()


LISTING = {"a1": {"category": "animals", "prompt": "a cat"}, "b.2": {"category": "art", "prompt": "a dog"}}


@given(data=damaged_json(LISTING))
@example(data=b"{}")
@example(data=json.dumps({"x" * 5_000: LISTING["a1"]}).encode())
@example(data=json.dumps({"\0": LISTING["a1"], "\ud800": LISTING["a1"], "": LISTING["a1"]}).encode())
def test_any_damage_to_a_listing_of_pictures_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, listing = Path(place) / "pictures", Path(place) / "meta_data.json"
        folder.mkdir()
        for name in LISTING:
            (folder / f"{name}.png").touch()
        listing.write_bytes(data)
        for read in (read_listing, reference_pictures):
            outcome(lambda read=read: read(listing, folder))


QUESTIONS = (
    "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    'a,"a cup, red",1,0,entity - whole (cup),Is there a cup?\n'
    'a,,2,"1, 3",attribute - color (cup),Is it red?\n'
)


@given(data=damaged(QUESTIONS.encode()))
def test_any_damage_to_dpg_benchs_questions_is_read_or_refused(data: bytes) -> None:
    for prompt in reading(data, read_questions) or []:
        with_dependencies(prompt.questions, np.ones((2, len(prompt.questions)), bool))


@given(data=damaged_json({"filename": "a.png", "correct": True, "metadata": "{}"}))
def test_any_damage_to_results_is_read_or_refused(data: bytes) -> None:
    reading(data, read_results)


@given(line=damaged_json({"key": "b", "row": {"correct": True}}))
@example(line=b'{"key": [1], "row": {}}')
def test_any_damage_to_a_store_of_verdicts_costs_the_damaged_line_alone(line: bytes) -> None:
    def stored(path: Path) -> dict[str, Any]:
        with VerdictStore(path) as store:
            store.add({"c": {"correct": 1}})
        with VerdictStore(path) as store:
            return {key: store[key] for key in ("a", "c")}

    whole = json.dumps({"key": "a", "row": {"correct": 0}}).encode()
    assert reading(whole + b"\n" + line, stored) == {"a": {"correct": 0}, "c": {"correct": 1}}


@given(data=damaged_json({"a": [1, {"b": None}]}))
def test_any_damage_to_a_file_of_json_is_read_or_refused(data: bytes) -> None:
    reading(data, read_json)


MANIFEST_VALUE = {"files": {"weights": {"bytes": 3, "sha256": "0" * 64}}}


@given(data=damaged_json(MANIFEST_VALUE) | st.sampled_from(ODD_VALUES).map(str.encode))
def test_any_damage_to_a_manifest_is_found_and_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "weights").write_bytes(b"abc")
        write_manifest(folder)
        assert not list(damaged_files(folder)) and published_path(place) == folder
        (folder / "manifest.json").write_bytes(data)
        for read in (lambda: verify_manifest(folder), lambda: published_path(place)):
            outcome(read)
