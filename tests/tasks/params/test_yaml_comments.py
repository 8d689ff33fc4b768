"""Claims about what is said of a param: once, at its declaration, and the same beside its key in params.yaml."""

import re
import typing
from pathlib import Path
from typing import Any

import pytest

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE
from tasks.params.yaml_comments import first_sentence, param_docstrings, with_comments

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / PARAMS_FILE).read_text(encoding="utf-8")
SECTIONS = typing.get_type_hints(Params)
HINTS = {
    f"{name}.{key}": hint for name, section in SECTIONS.items() for key, hint in typing.get_type_hints(section).items()
}


def comments() -> dict[str, str]:
    """The comment beside each section and key of params.yaml."""
    found, section = {}, ""
    for indent, key, comment in re.findall(r"^( *)(\w+):[^#\n]*# (.*)$", TEXT, re.MULTILINE):
        section = section if indent else key
        found[f"{section}.{key}" if indent else key] = comment
    return found


def test_every_section_and_key_has_a_docstring() -> None:
    assert [name for name in (*SECTIONS, *HINTS) if not param_docstrings().get(name)] == []


def test_every_comment_of_params_yaml_is_the_first_sentence_of_the_docstring() -> None:
    said, told = comments(), {name: first_sentence(text) for name, text in param_docstrings().items()}
    differs = [name for name in (*SECTIONS, *HINTS) if said.get(name) != told[name]]
    assert differs == [], "run python -m tasks.params.yaml_comments"


def choices(hint: Any) -> list[str]:
    """The values of a choice; none for other types."""
    return [str(value) for value in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []


@pytest.mark.parametrize("name", [name for name, hint in HINTS.items() if choices(hint)])
def test_the_comment_of_a_choice_names_every_value(name: str) -> None:
    words = re.findall(r"[\w-]+", comments()[name])
    assert [value for value in choices(HINTS[name]) if value not in words] == []


def test_writing_the_comments_changes_no_value_and_no_line_of_its_own() -> None:
    bare = re.sub(r"(?m)^( *\w+:[^#\n]*?) *#.*$", r"\1  # stale", TEXT)
    assert bare != TEXT and with_comments(bare) == TEXT
    own = "# a line of its own\n\ngrow:\n  depth: 3\n"
    assert re.sub(r" +# [A-Z].*", "", with_comments(own)) == own


def test_no_line_of_params_yaml_is_longer_than_120_characters() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []
