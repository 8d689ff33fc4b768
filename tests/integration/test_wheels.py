"""What `make wheels` collects is complete and pinned, by the sources' imports and the metadata of what is installed."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.helpers.bare_machine import GPU_MACHINE, closure

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")
# imported where they are used: without them there is no `adamw8bit`, no judge tuned by LoRA and no Frechet distance,
# and reports to MLflow wait in a folder
OPTIONAL = {"bitsandbytes", "mlflow", "peft", "torchmetrics"}


def listed(file: str) -> set[str]:
    """Names of the packages that a file of requirements lists."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {canonicalize_name(Requirement(line).name) for line in lines if line}


PINNED = listed("constraints.txt")
GPU_WHEELS = listed("benchmarks/gpu-requirements.txt")


def machine(python: str) -> set[str]:
    """What a GPU machine has."""
    return closure({Requirement(name) for name in GPU_MACHINE}, python)


def benchmark_files() -> list[Path]:
    """`benchmarks/gpu.py`, the benchmarks that it runs, and what they import from their folder."""
    parts = runpy.run_path(str(ROOT / "benchmarks/gpu.py"))["PARTS"]
    waiting, files = ["gpu", *(part.script or part.name for part in parts)], []
    while waiting:
        file = ROOT / "benchmarks" / f"{waiting.pop()}.py"
        if file.exists() and file not in files:
            files.append(file)
            waiting += [name for name, _ in imports(file)]
    return files


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Top-level names that a file imports, each with whether that happens as soon as the file is imported."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            yield name.partition(".")[0], node in tree.body


@cache
def imported() -> dict[str, set[tuple[Path, bool]]]:
    """Names of others' packages that the stages and the GPU's benchmarks import, with the files that do."""
    files = [file for room in ("kernels", "model", "tasks") for file in (ROOT / room).rglob("*.py")]
    found: dict[str, set[tuple[Path, bool]]] = {}
    for file in [*files, *benchmark_files()]:
        for name, at_once in imports(file):
            ours = (ROOT / name).is_dir() or (file.parent / f"{name}.py").exists()
            if name not in sys.stdlib_module_names and not ours:
                found.setdefault(name, set()).add((file, at_once))
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_whatever_stages_and_gpu_benchmarks_import_is_on_the_gpu_machine_or_in_its_wheels(python: str) -> None:
    found, distributions = imported(), packages_distributions()
    assert {"torch", "diffusers", "came_pytorch", "rich"} <= set(found)
    there = machine(python) | GPU_WHEELS
    missing = [name for name in found if not there & {canonicalize_name(one) for one in distributions.get(name, ())}]
    assert set(missing) == OPTIONAL, {name: [str(file) for file, _ in found[name]] for name in missing}


def test_what_the_gpu_wheels_leave_out_is_imported_only_where_it_is_used() -> None:
    found = imported()
    assert not [(name, file) for name in OPTIONAL for file, at_once in found[name] if at_once]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_gpu_wheels_are_complete_and_hold_nothing_that_the_machine_has(python: str) -> None:
    there = machine(python)
    assert closure({Requirement(name) for name in GPU_WHEELS}, python) <= GPU_WHEELS | there
    assert not GPU_WHEELS & there


def test_every_gpu_wheel_is_pinned() -> None:
    assert GPU_WHEELS <= PINNED


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_name_all_that_the_project_needs_on_every_python(python: str) -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    wanted = [*build, *PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    assert closure({Requirement(text) for text in wanted}, python) <= PINNED


def make(*variables: str) -> subprocess.CompletedProcess[str]:
    """What `make wheels` would run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-n", "wheels", *variables], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_wheels_are_for_the_pythons_that_the_project_runs_on() -> None:
    asked = [f"3.{minor}" for minor in range(9, 16)]
    taken = [python for python in asked if make(f"PYTHON_VERSION={python}").returncode == 0]
    assert taken == list(SpecifierSet(PROJECT["requires-python"]).filter(asked)) == list(PYTHONS)


@pytest.mark.parametrize("choice", ["PYTHON_VERSION=2", "TORCH=rocm", "WHEELS=some"])
def test_a_wrong_choice_of_wheels_is_one_line(choice: str) -> None:
    refused = make(choice)
    assert refused.returncode == 2 and refused.stdout == ""
    [line] = refused.stderr.splitlines()
    name, value = choice.split("=")
    assert re.search(rf'{name} is "{value}": it must be one of \w', line)
