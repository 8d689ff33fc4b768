"""Any damage to params and profiles is read or refused in one line."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install -e '.[dev]' -c constraints.txt")

from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_profile, build_params, read_yaml, section_values
from tasks.params.yaml_text import parse_yaml
from tasks.system.manifest import sha256_json
from tests.fuzz.damaged_bytes import TOKENS, damaged
from tests.fuzz.outcomes import outcome

VALUES = read_yaml(Path(__file__).parents[2] / PARAMS_FILE)
LAUGHS = "[&a [x,x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{to} [{', '.join([f'*{of}'] * 10)}]" for of, to in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = (
    "null",
    "true",
    "yes",
    "-1",
    "0",
    "1.5",
    ".nan",
    "-.inf",
    "1e999",
    "9" * 5_000,
    "1" + "0" * 400,
    "0x" + "f" * 5_000,
    "1:" * 5_000 + "1",
    "1:1:1.5",
    "2020-02-31",
    "2020-01-01 25:00:00",
    "!!int ''",
    "!!float ''",
    "!!bool x",
    "!!null [1]",
    "!!timestamp x",
    "!!binary x",
    "!!map [ab]",
    "!!seq {a: b}",
    "!!set [1]",
    "!!omap [1]",
    "!!str [1]",
    "!!python/name:os.system",
    "!<x>",
    "&a [*a]",
    "&a {b: *a}",
    "*a",
    LAUGHS + "]",
    "{<<: 3}",
    "{<<: [1]}",
    "{? [a] : b}",
    "{? {a: b} : c}",
    "{1: 2}",
    "{null: 1.0}",
    "{a: 1, a: 2}",
    "{a: {path: 3}}",
    "[1, a, null]",
    "[" * 900 + "]" * 900,
    "[" * 20_000,
    '"\\ud800"',
    '"\\0"',
    '"a\\nb\\u2028"',
    "x" * 5_000,
    "'",
    "=",
    "../x",
    "|",
    "%",
    "@",
    "#",
    "\t",
)
"""What takes the place of a value of params."""


def yaml_of(value: Any) -> str:
    """A value in YAML's short form on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()


@st.composite
def changed_section(draw: st.DrawFn) -> str:
    """One section of params as YAML, in which one to three values, keys or lines are others."""
    section = draw(st.sampled_from(sorted(VALUES)))
    lines = [f"  {key}: {yaml_of(value)}" for key, value in VALUES[section].items()]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key = lines[place].partition(":")[0]
        odd = draw(st.sampled_from(ODD))
        lines[place] = draw(
            st.sampled_from((f"{key}: {odd}", f"  {odd}: 1", f"{key}: [{odd}]", f"{key}: {{a: {odd}}}"))
        )
    return "\n".join([f"{section}:", *lines]) + "\n"


def damaged_text(text: str) -> SearchStrategy[bytes]:
    """YAML text with damage to its bytes."""
    return damaged(text.encode(), TOKENS + tuple(odd.encode() for odd in ODD if len(odd) < 100))


def check_params(params: Params | None) -> None:
    """What a flow does with params before any stage: it takes all their values, and makes digests of them."""
    if params is not None:
        sha256_json(section_values(params, tuple(VALUES)))


def read_section(data: bytes) -> Params:
    """The params of params.yaml with the sections of a damaged file in their place."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "params.yaml"
        path.write_bytes(data)
        return build_params(VALUES | read_yaml(path), str(path))


def test_undamaged_sections_are_read() -> None:
    for section in VALUES:
        assert read_section(yaml_of({section: VALUES[section]}).encode()) == build_params(VALUES, "here")


@given(text=changed_section())
@example(text="train:\n  steps: !!int ''\n")
@example(text="train:\n  steps: !!bool x\n")
@example(text="train:\n  steps: !!timestamp x\n")
@example(text="train: !!map [ab]\n")
@example(text="train:\n  steps: 0x" + "f" * 5_000 + "\n")
@example(text="judge:\n  time_limit: 1" + "0" * 400 + "\n")
@example(text=f"train: {LAUGHS}]\n")
@example(text="data:\n  sets: &a {b: *a}\n")
@example(text="data:\n  sets: {1: {}}\n")
@example(text="x" * 5_000 + ": {}\n")
def test_any_value_of_params_is_read_or_refused(text: str) -> None:
    check_params(outcome(lambda: read_section(text.encode(errors="surrogatepass"))))


@given(data=damaged_text(yaml_of({name: VALUES[name] for name in ("data", "prune", "train")})))
def test_any_damage_to_the_bytes_of_params_is_read_or_refused(data: bytes) -> None:
    check_params(outcome(lambda: read_section(data)))


@given(data=damaged_text("extends: other\ntrain:\n  steps: 12\nprune:\n  depths: [5, 4]\n"))
@example(data=b"extends: [other]\n")
@example(data=b"extends: " + b"x" * 5_000)
@example(data=b"extends: a/../damaged\n")
def test_any_damage_to_a_profile_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "damaged.yaml").write_bytes(data)
        (Path(place) / "other.yaml").write_text("train: {steps: 3}\n")
        values = outcome(lambda: apply_profile(VALUES, "damaged", Path(place)))
        if values is not None:
            check_params(outcome(lambda: build_params(values, "here")))


@given(text=st.sampled_from(ODD) | st.text(max_size=20))
def test_any_value_on_the_command_line_is_read_or_refused(text: str) -> None:
    value = outcome(lambda: parse_yaml(text, "-p train.steps"))
    check_params(outcome(lambda: build_params(VALUES | {"train": VALUES["train"] | {"steps": value}}, "here")))


def test_a_number_that_is_not_finite_and_a_truth_value_for_a_number_are_refused() -> None:
    for changes in ({"train": {"learning_rate": float("inf")}}, {"evaluation": {"keep": True}}):
        (section, keys), *_ = changes.items()
        assert outcome(lambda s=section, k=keys: build_params(VALUES | {s: VALUES[s] | k}, "here")) is None
