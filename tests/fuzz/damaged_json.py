"""Damage to a JSON file, as Hypothesis draws it: wrong types, odd numbers and texts, keys that are missing or twice."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.damaged_bytes import DEEP, DIGITS, damaged

ODD_VALUES = (
    "null",
    "true",
    "0",
    "1",
    "-1",
    "1.5",
    "1e999",
    "NaN",
    "-Infinity",
    "9223372036854775808",
    "1" + "0" * 400,
    "9" * DIGITS,
    '""',
    '"0"',
    r'"\ud800"',
    r'"\u0000"',
    r'"a\nb"',
    r'"\u2028"',
    '"../a"',
    '"' + "x" * 5_000 + '"',
    "[]",
    "{}",
    "[1]",
    '["red"]',
    '{"a": 1}',
    "[" * 900 + "]" * 900,
    "[" * DEEP,
)
"""Texts that take the place of a value. Most are JSON of a type or a size that the reader does not want."""
ODD_KEYS = ("", "\x00", "a\nb", "\ud800", "a.b", "x" * 5_000)


@dataclass
class RawText:
    """Text that stands in a JSON file as it is."""

    text: str


@dataclass
class JsonObject:
    """A JSON object as a list of [key, value], since a damaged one may have a key twice."""

    pairs: list[list[Any]]


def damaged_json(value: Any) -> SearchStrategy[bytes]:
    """The bytes of `value` as JSON with one to three changes of its structure, or with any change of its bytes."""
    plain = json.dumps(value).encode()
    return st.one_of(changed_json(value), changed_json(value), damaged(plain))


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> bytes:
    """The bytes of `value` as JSON with one to three changes of its structure."""
    top = [_to_tree(value)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(top))
        if not places:
            break
        children, index = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "rename")))
        pair = children[index] if isinstance(children, list) and _is_pair(children[index]) else None
        if kind == "remove":
            del children[index]
        elif kind == "repeat":
            children.insert(index, copy.deepcopy(children[index]))
        elif kind == "rename" and pair is not None:
            pair[0] = draw(st.sampled_from(ODD_KEYS))
        else:
            odd = RawText(draw(st.sampled_from(ODD_VALUES)))
            if pair is not None:
                pair[1] = odd
            else:
                children[index] = odd
    return " ".join(map(_text_of, top)).encode()


class _Pair(list):
    """A [key, value] of an object, told from a JSON array by its class."""


def _is_pair(item: Any) -> bool:
    return isinstance(item, _Pair)


def _to_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return JsonObject([_Pair([key, _to_tree(each)]) for key, each in value.items()])
    return [_to_tree(each) for each in value] if isinstance(value, list) else value


def _places(node: Any) -> Iterator[tuple[list[Any], int]]:
    """Each list of children below a node with the number of each child in it."""
    children = node.pairs if isinstance(node, JsonObject) else node if isinstance(node, list) else []
    for index, child in enumerate(children):
        yield children, index
        yield from _places(child[1] if _is_pair(child) else child)


def _text_of(node: Any) -> str:
    if isinstance(node, RawText):
        return node.text
    if isinstance(node, JsonObject):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text_of(value)}" for key, value in node.pairs) + "}"
    return "[" + ", ".join(map(_text_of, node)) + "]" if isinstance(node, list) else json.dumps(node)
