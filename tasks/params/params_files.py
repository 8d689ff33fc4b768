"""Reads `params.yaml`, profiles and overrides, and makes checked params of them.

An unknown key is refused with the name of its file and the nearest known key. A profile, `profiles/<name>.yaml`,
replaces some values of `params.yaml`, or of another profile that it extends.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from tasks.params.experiment_params import Params
from tasks.params.typed_values import build, unknown_key
from tasks.params.yaml_text import parse_yaml
from tasks.system.errors import UserError

PARAMS_FILE = Path("params.yaml")
PROFILES = Path("profiles")
EXTENDS = "extends"
"""The one key of a profile that is no section. It names the profile that this one is laid over."""


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a complete params file. Raises UserError naming the key and the file."""
    return build_params(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UserError if the file is missing, not YAML in UTF-8, has a key twice, or is no mapping."""
    try:
        value = parse_yaml(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the folder that holds params.yaml") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping of sections: compare it with params.yaml")
    return value


def build_params(values: dict[str, Any], where: str) -> Params:
    """Check a nested mapping against the sections; `where` names its file in errors. Raises UserError."""
    return build(Params, values, where)


def apply_profile(
    values: dict[str, Any], profile: str, profiles: Path = PROFILES, extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`values` with those of `profiles/<profile>.yaml` in their place; the profile that it extends is applied first.

    `extended_by` are the profiles that led here. Raises UserError for an unknown profile, one that extends itself, or a
    key that `values` has not.
    """
    path = profiles / f"{profile}.yaml"
    if not os.path.isfile(path):  # False too for a name that is too long
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
            raise unknown_key(dotted, known, where)
        section, key = dotted.split(".", 1)
        merged[section][key] = value
    return merged


def _sections(values: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    for section, pairs in values.items():
        if not isinstance(pairs, dict):
            raise UserError(f"{where}: {section} is {pairs!r}: it must be a mapping of keys")
    return values


def section_values(params: Params, sections: tuple[str, ...]) -> dict[str, Any]:
    """The named sections (`network`) or keys (`compute.seed`) as plain values, for digests and logs.

    A key below another (`data.sets.sft.path`) is None if the mapping lacks it.
    """
    chosen: dict[str, Any] = {}
    for name in sections:
        section, *keys = name.split(".")
        value: Any = dataclasses.asdict(getattr(params, section))
        for depth, key in enumerate(keys):
            value = value[key] if depth == 0 else (value or {}).get(key)
        chosen[name] = value
    return chosen
