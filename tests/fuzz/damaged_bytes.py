"""Damage to the bytes of a file, as Hypothesis draws it: bits that flip, cuts, insertions, repetitions, encodings."""

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DEEP = 20_000
"""Brackets inside each other. Python's parsers give up at about a thousand."""
DIGITS = 5_000
"""Digits of a number. Python refuses to convert more than 4,300."""
TOKENS = (
    b"\x00",
    b"\xff",
    b"\n",
    b"\r",
    b'"',
    b"[",
    b"}",
    b"-1",
    b"NaN",
    b"1e999",
    b"null",
    b"true",
    b"\\ud800",
    b"\\u0000",
    b"\xc2\x85",  # a line's end to some readers and a character to others, like the next
    b"\xe2\x80\xa8",
    b"\xff\xfe",
    BYTE_ORDER_MARK,
    b"9" * DIGITS,
    b"[" * DEEP,
    b'{"a":' * DEEP,
    bytes(512),
)
"""What is inserted: bytes that mean something to a reader of text, JSON or tars."""

Change = tuple[str, int, bytes | int]
"""The kind of a change, the byte where it begins, and what it inserts or how many bytes it takes."""


def damaged(data: bytes, tokens: Sequence[bytes] = TOKENS) -> SearchStrategy[bytes]:
    """`data` with one to four changes anywhere, or changed as a whole."""
    return st.one_of(changed(data, 0, len(data), tokens), st.sampled_from(as_a_whole(data)))


def changed(data: bytes, first: int, end: int, tokens: Sequence[bytes] = TOKENS) -> SearchStrategy[bytes]:
    """`data` with one to four changes that begin between the bytes `first` and `end`."""
    places = st.integers(first, end)
    change = st.one_of(
        st.tuples(st.just("replace"), places, st.binary(min_size=1, max_size=1)),
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("insert"), places, st.sampled_from(tokens) | st.binary(max_size=8)),
        st.tuples(st.just("delete"), places, st.integers(1, 64)),
        st.tuples(st.just("repeat"), places, st.integers(1, 600)),
        st.tuples(st.just("cut"), places, st.just(0)),
    )
    return st.lists(change, min_size=1, max_size=4).map(partial(_apply, data))


def as_a_whole(data: bytes) -> list[bytes]:
    """Changes of a whole file: nothing, zeros, twice, in other encodings, with something before or behind."""
    text = data.decode("latin-1")
    return [
        b"",
        bytes(len(data)),
        data + data,
        data[: len(data) // 2],
        BYTE_ORDER_MARK + data,
        text.encode("utf-16"),
        text.encode("utf-32-le"),
        data + bytes(1024),
        data + b"\x1a",
        data.replace(b"\n", b"\r"),
    ]


def _apply(data: bytes, changes: list[Change]) -> bytes:
    """The bytes after all changes, each of which sees what the ones before it left."""
    for kind, place, value in changes:
        head, tail = data[:place], data[place:]
        match kind, value:
            case "flip", int(bit) if tail:
                data = head + bytes([tail[0] ^ 1 << bit]) + tail[1:]
            case "replace", bytes(byte):
                data = head + byte + tail[1:]
            case "insert", bytes(token):
                data = head + token + tail
            case "delete", int(count):
                data = head + tail[count:]
            case "repeat", int(count):
                data = head + tail[:count] + tail
            case "cut", _:
                data = head
    return data
