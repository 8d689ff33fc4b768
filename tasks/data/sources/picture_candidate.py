"""Candidates: the pictures that a source of files offers, before it is known which of them can be used.

A source lists its candidates without opening them. Reading one gives its picture file and caption, or raises `Reject`.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class Reject(Exception):
    """A picture cannot be used; the message says why. The stage counts and names it, and goes on with the others."""


class LeftOut(Exception):
    """A limit that params set leaves a picture out. It is counted, and it is no fault of the picture."""


@dataclass(frozen=True)
class Candidate:
    """A picture that may become a sample.

    `key` identifies it in its source, and decides its split. `where` names it to the user. `read` returns the bytes of
    its picture file and its caption, or raises Reject or LeftOut. If an epoch shall draw one of several captions,
    `captions` returns them with their weights, the caption of `read` first.
    """

    key: str
    where: str
    read: Callable[[], tuple[bytes, str]]
    captions: Callable[[], Mapping[str, float]] | None = None


def rejected(key: str, where: str, reason: str) -> Candidate:
    """A candidate that is known to be unusable when it is listed. Reading it raises Reject with the reason."""

    def read() -> tuple[bytes, str]:
        raise Reject(reason)

    return Candidate(key, where, read)


def unnameable(name: str) -> Candidate:
    """A reject for a picture whose name is not UTF-8. It is named with escapes."""
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return rejected(shown, shown, "its name is not UTF-8: rename it")


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8. Python reads the other bytes of a name as surrogates, which no record can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def reject_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in their order. Of those with the same key, all but the first are turned into rejects."""
    first: dict[str, Candidate] = {}
    result = []
    for candidate in candidates:
        known = first.setdefault(candidate.key, candidate)
        if known is not candidate:
            candidate = rejected(candidate.key, candidate.where, f"duplicate key: {known.where} has it already")
        result.append(candidate)
    return result


def clean_caption(text: str) -> str:
    """A caption on one line without stray white space. Raises Reject if nothing is left."""
    caption = " ".join(text.split())
    if not caption.strip("".join(map(chr, range(32))) + "\x7f\ufeff "):  # control characters alone say nothing
        raise Reject("empty caption")
    if any("\ud800" <= character <= "\udfff" for character in caption):  # surrogates, which JSON escapes may hold
        raise Reject("caption is not UTF-8")
    return caption


def parse_json(data: bytes, what: str) -> Any:
    """The value of the JSON text of `what`. Raises Reject if it is not UTF-8, or no JSON that Python can hold."""
    text = decode_text(data)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of more than 4,300 digits, and brackets nested too deep
        raise Reject(f"{what} is not JSON") from None


def decode_text(data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark. Raises Reject if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Reject("caption is not UTF-8") from None
