"""Checked dataclasses of plain values, such as those of a YAML file, by the annotations of their fields."""

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import Any, Literal, TypeVar

from tasks.system.errors import UserError

Section = TypeVar("Section")
UNIONS = (types.UnionType, typing.Union)
"""Python writes `int | None` as the first and `Literal[...] | None` as the second."""
COMPARED = 100
"""Characters of a wrong name that are compared with the right ones: the time grows with their square."""


def build(cls: type[Section], values: Any, where: str, prefix: str = "") -> Section:
    """A dataclass from a mapping of its fields, each checked against its annotation.

    A field with a default may be left out. A field whose name is a word of Python's own ends in an underscore, which
    its key has not (`from_`). Raises UserError with the file `where` and the key behind `prefix` (`grow.`) for a key
    that is unknown or missing, for a value of another type, and for what the class itself refuses with ValueError.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} is {values!r}: it must be a mapping of keys")
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in fields], where)
    missing = [key for key, field in fields.items() if key not in values and not _has_default(field)]
    if missing:
        raise UserError(f"{where}: key {prefix + missing[0]!r} is missing: add it (params.yaml has every key)")
    hints = typing.get_type_hints(cls)
    given = {
        field.name: _convert(hints[field.name], values[key], where, f"{prefix}{key}")
        for key, field in fields.items()
        if key in values
    }
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(f"{where}: {prefix}{error}") from None


def unknown_key(key: str, known: list[str], where: str) -> UserError:
    """The error that names an unknown key, its file, and the nearest known key."""
    nearest = difflib.get_close_matches(key[:COMPARED], known, n=1, cutoff=0.0)
    return UserError(f"{where}: unknown key {key!r}: did you mean {nearest[0]!r}?")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)


def _convert(hint: Any, value: Any, where: str, key: str, or_null: str = "") -> Any:
    """`value` as the type `hint`, or a UserError naming the key. Accepts an int for a float, a list for a tuple."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _chosen(arguments, value, where, key)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where, key) for item in value)
    if origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, where, f"{key}.{name}") for name, item in value.items()}
    if origin in UNIONS:
        return None if value is None else _convert(arguments[0], value, where, key, " or null")
    if hint is float and _is_finite(value):
        return float(value)
    if hint is Any or (type(value) is hint and hint is not float):
        return value
    raise UserError(f"{where}: {key} is {value!r} ({type(value).__name__}): it must be {_spelled(hint)}{or_null}")


def _chosen(choices: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):  # True is equal to 1
            return value
    nearest = difflib.get_close_matches(str(value)[:COMPARED], [str(choice) for choice in choices], n=1, cutoff=0.0)[0]
    raise UserError(f"{where}: {key} is {value!r}: it must be one of {list(choices)}; did you mean {nearest!r}?")


def _spelled(hint: Any) -> str:
    """A type in an error: `int`, `list of int`, `mapping`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return "list" if arguments[0] is Any else f"list of {_spelled(arguments[0])}"
    return "mapping" if origin is dict else "float, and finite" if hint is float else hint.__name__


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold: neither NaN nor infinite, nor too large."""
    try:
        return (type(value) in (int, float) or _is_exponent(value)) and math.isfinite(float(value))
    except OverflowError:
        return False


def _is_exponent(value: Any) -> bool:
    """Whether a text is a number such as 7e-5, which YAML 1.1 reads as text because it has no dot."""
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None
