"""The environment of a machine that has a few packages and what these need, and nothing else that is installed here.

Processes that are started with it, and those that they start, cannot import the other packages, do not find them among
what is installed, and do not find the project unless it is on their path.
"""

import os
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "sana15"  # its finder is taken away, its modules are found where they are on the path
HIDING = '''
"""Hides packages; imported by Python itself when it starts."""
import importlib.metadata
import re
import sys
from importlib.machinery import PathFinder

MODULES, DISTRIBUTIONS = HIDDEN
find_spec, find_distributions = PathFinder.find_spec, importlib.metadata.MetadataPathFinder.find_distributions


def visible_spec(_finder, name, path=None, target=None):
    return None if name.partition(".")[0] in MODULES else find_spec(name, path, target)


def visible_distributions(*arguments):
    for found in find_distributions(*arguments):
        if re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() not in DISTRIBUTIONS:
            yield found


PathFinder.find_spec = classmethod(visible_spec)
importlib.metadata.MetadataPathFinder.find_distributions = staticmethod(visible_distributions)
sys.meta_path[:] = [one for one in sys.meta_path if not getattr(one, "__name__", "").startswith("_Editable")]
'''


def bare_environment(folder: Path, *packages: str) -> dict[str, str]:
    """Variables under which Python sees `packages` and what they need; `folder` gets the file that hides the rest."""
    visible = closure(packages)
    installed = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    modules = {
        module
        for module, owners in packages_distributions().items()
        if PROJECT not in owners and not visible & {canonicalize_name(owner) for owner in owners}
    }
    hidden = f"{modules!r}, {installed - visible!r}"
    (folder / "sitecustomize.py").write_text(HIDING.replace("HIDDEN", hidden))
    return {**os.environ, "PYTHONPATH": str(folder)}


def closure(packages: tuple[str, ...]) -> set[str]:
    """Names of the packages and of all that they need, as far as it is installed here."""
    needs = {canonicalize_name(one.metadata["Name"]): one.requires or [] for one in distributions()}
    seen: set[str] = set()
    waiting = [canonicalize_name(package) for package in packages]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in needs:
            continue
        seen.add(name)
        wanted = [Requirement(text) for text in needs[name]]
        waiting += [
            canonicalize_name(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return seen
