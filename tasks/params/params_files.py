"""Reads `params.yaml`, profiles and overrides, and makes checked params of them.

An unknown key is refused with the name of its file and the nearest known key. A profile, `profiles/<name>.yaml`,
replaces some values of `params.yaml`, or of another profile that it extends.
"""

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from tasks.params.experiment_params import Params
from tasks.system.errors import UserError

PARAMS_FILE = Path("params.yaml")
PROFILES = Path("profiles")
EXTENDS = "extends"
"""The one key of a profile that is no section. It names the profile that this one is laid over."""

Section = TypeVar("Section")
UNIONS = (types.UnionType, typing.Union)
"""Python writes `int | None` as the first and `Literal[...] | None` as the second."""


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a complete params file. Raises UserError naming the key and the file."""
    return build_params(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UserError if the file is missing, not YAML, or not a mapping."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the folder that holds params.yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping of sections: compare it with params.yaml")
    return value


def build_params(values: dict[str, Any], where: str) -> Params:
    """Check a nested mapping against the sections; `where` names its file in errors. Raises UserError."""
    return build(Params, values, where)


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
            raise _unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in fields], where)
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


def apply_profile(
    values: dict[str, Any], profile: str, profiles: Path = PROFILES, extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`values` with those of `profiles/<profile>.yaml` in their place; the profile that it extends is applied first.

    `extended_by` are the profiles that led here. Raises UserError for an unknown profile, one that extends itself, or a
    key that `values` has not.
    """
    path = profiles / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in profiles.glob("*.yaml")))
        raise UserError(f"profile {profile!r} is unknown: {profiles} has {known}")
    if profile in extended_by:
        raise UserError(f"{path} extends itself by way of {', '.join(extended_by)}: take out one {EXTENDS}")
    sections = read_yaml(path)
    if base := sections.pop(EXTENDS, None):
        values = apply_profile(values, base, profiles, (*extended_by, profile))
    overrides = {
        f"{section}.{key}": value
        for section, pairs in _sections(sections, str(path)).items()
        for key, value in pairs.items()
    }
    return apply_overrides(values, overrides, str(path))


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """A copy of `values` with dotted keys replaced (`finetune.steps: 50`). Raises UserError for an unknown key."""
    merged = {section: dict(pairs) for section, pairs in _sections(values, where).items()}
    known = [f"{section}.{key}" for section, pairs in values.items() for key in pairs]
    for dotted, value in overrides.items():
        if dotted not in known:
            raise _unknown(dotted, known, where)
        section, key = dotted.split(".", 1)
        merged[section][key] = value
    return merged


def _sections(values: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    for section, pairs in values.items():
        if not isinstance(pairs, dict):
            raise UserError(f"{where}: {section} is {pairs!r}: it must be a mapping of keys")
    return values


def section_values(params: Params, sections: tuple[str, ...]) -> dict[str, Any]:
    """The named sections (`network`) or keys (`compute.seed`) as plain values, for digests and logs."""
    chosen: dict[str, Any] = {}
    for name in sections:
        section, _, key = name.partition(".")
        values = dataclasses.asdict(getattr(params, section))
        chosen[name] = values[key] if key else values
    return chosen


def _unknown(key: str, known: list[str], where: str) -> UserError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
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
    if hint is float and (type(value) in (int, float) or _is_exponent(value)):
        return float(value)
    if hint is Any or type(value) is hint:
        return value
    raise UserError(f"{where}: {key} is {value!r} ({type(value).__name__}): it must be {_spelled(hint)}{or_null}")


def _chosen(choices: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    if value in choices:
        return value
    nearest = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.0)[0]
    raise UserError(f"{where}: {key} is {value!r}: it must be one of {list(choices)}; did you mean {nearest!r}?")


def _spelled(hint: Any) -> str:
    """A type in an error: `int`, `list of int`, `mapping`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return "list" if arguments[0] is Any else f"list of {_spelled(arguments[0])}"
    return "mapping" if origin is dict else hint.__name__


def _is_exponent(value: Any) -> bool:
    """Whether a text is a number such as 7e-5, which YAML 1.1 reads as text because it has no dot."""
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None
