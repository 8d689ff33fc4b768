"""Looks at the versions of Python and of its packages, which `constraints.txt` and `pyproject.toml` pin."""

import platform
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from flows.doctor.finding import Finding, fine

PROJECT = Path(__file__).parents[2]
"""The folder of the code that runs, which need not be the workspace."""
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[\w.!+-]+)")
SHOWN = 5
"""Packages that a line names; it counts the others."""


def look(_project: Path) -> Iterator[Finding]:
    """One line on Python, one on packages that are missing, and one on packages of other versions than pinned."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = settings["requires-python"]
    here = platform.python_version()
    if not Requirement(f"python{wanted}").specifier.contains(here, prereleases=True):
        yield Finding(f"Python is {here}, and the code is for {wanted}: delete .venv, and run make setup PYTHON=...")
    missing = [name for name in required(settings["dependencies"]) if installed(name) is None]
    if missing:
        yield Finding(f"missing are {some(missing)}: run make setup")
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {found["name"]: found["version"] for line in lines if (found := PIN.match(line))}
    others = [
        f"{name} {found} (pinned {pinned})"
        for name, pinned in pins.items()
        if (found := installed(name)) is not None and Version(found).public != Version(pinned).public
    ]
    if others:
        yield Finding(
            f"of other versions than constraints.txt pins are {some(others)}: touch pyproject.toml; make setup"
        )
    if not missing and not others:
        yield fine(f"Python {here}, and all packages are those of constraints.txt")


def required(dependencies: list[str]) -> list[str]:
    """The packages that the project needs on this system."""
    every = [Requirement(text) for text in dependencies]
    return [one.name for one in every if one.marker is None or one.marker.evaluate()]


def installed(name: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
