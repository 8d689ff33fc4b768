"""The environment of a machine that has a few packages and what these need, and nothing else that is installed here.

Processes that are started with it, and those that they start, cannot import the other packages, do not find them among
what is installed, and do not find the project unless it is on their path.
"""

import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OF_CUDA = ("nvidia-", "cuda-")
GPU_MACHINE = "torch triton transformers accelerate safetensors numpy scipy pillow pytest pytest-xdist".split()
"""What `benchmarks/gpu.py` asks for."""
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
    installed = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    visible = closure({Requirement(name) for name in packages}, f"{sys.version_info[0]}.{sys.version_info[1]}")
    visible |= {name for name in installed if name.startswith(OF_CUDA)}
    modules = {
        module
        for module, owners in packages_distributions().items()
        if PROJECT not in owners and not visible & {canonicalize_name(owner) for owner in owners}
    }
    hidden = f"{modules!r}, {installed - visible!r}"
    (folder / "sitecustomize.py").write_text(HIDING.replace("HIDDEN", hidden))
    return {**os.environ, "PYTHONPATH": str(folder)}


@cache
def needed_by(requirement: Requirement, python: str) -> frozenset[Requirement]:
    """What one requirement needs directly on Linux with that Python, by the metadata of what is installed here."""
    try:
        found = [Requirement(text) for text in requires(requirement.name) or []]
    except PackageNotFoundError:
        return frozenset()
    here = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    extras = requirement.extras or {""}
    return frozenset(
        one
        for one in found
        # torch's CUDA build needs packages that its CPU build does not, in exact versions that are its own
        if not one.name.startswith(OF_CUDA)
        and (one.marker is None or any(one.marker.evaluate(here | {"extra": extra}) for extra in extras))
    )


def closure(wanted: set[Requirement], python: str) -> set[str]:
    """Names of all that `wanted` need, themselves included; one that is not installed here is not followed."""
    seen, waiting = set(), set(wanted)
    while waiting:
        requirement = waiting.pop()
        seen.add((requirement.name, frozenset(requirement.extras)))
        waiting |= {one for one in needed_by(requirement, python) if (one.name, frozenset(one.extras)) not in seen}
    return {canonicalize_name(name) for name, _ in seen}
