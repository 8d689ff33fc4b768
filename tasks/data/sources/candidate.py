"""Where pictures and captions come from: rendered scenes, a folder of files, or existing WebDataset shards.

A source of files lists candidates without opening them; reading one gives its picture file and caption, or a `Reject`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


class Reject(Exception):
    """A picture that cannot be used; the message is the reason. It is counted and named, and the others go on."""


@dataclass(frozen=True)
class Candidate:
    """A picture that may become a sample.

    `key` identifies it in its source and decides its split, `where` names it to the user, and `read` returns the bytes
    of its picture file and its caption, or raises Reject.
    """

    key: str
    where: str
    read: Callable[[], tuple[bytes, str]]


def rejected(key: str, where: str, reason: str) -> Candidate:
    """A candidate that listing alone has shown to be unusable."""

    def read() -> tuple[bytes, str]:
        raise Reject(reason)

    return Candidate(key, where, read)


def reject_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates, where all but the first of the same key are turned into rejects."""
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
    if not caption:
        raise Reject("empty caption")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise Reject("caption is not UTF-8")
    return caption


def decode_text(data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark. Raises Reject if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Reject("caption is not UTF-8") from None
