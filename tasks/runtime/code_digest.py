"""Finds the project's files that a stage's result depends on, by the imports of its module."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tasks.system.manifest import sha256_file, sha256_json

PROJECT = Path(__file__).parents[2]
ROOMS = ("tasks", "model", "kernels")
PLUMBING = ("tasks.params", "tasks.runtime", "tasks.stages", "tasks.system", "tasks.tracking")
"""The rooms that run a stage, read its params, report on it or name its folders. They change no result."""


def code_digest(stem: str) -> str:
    """The digest of the files that a stage's result depends on, by the stage's stem (`finetune`)."""
    return sha256_json({path.as_posix(): sha256_file(PROJECT / path) for path in stage_files(stem)})


def stage_files(stem: str) -> list[Path]:
    """The files that a stage's result depends on, relative to the project: its modules, and the data beside them."""
    modules = sorted(set(imported_files(f"tasks.{stem}")))
    data = {file for folder in {module.parent for module in modules} for file in _data_beside(folder)}
    return sorted({*modules, *data})


def imported_files(module: str, seen: set[str] | None = None) -> Iterator[Path]:
    """The file of a module, and the project's files that it imports, directly or through others.

    `seen` are modules that have been looked at already; the function adds to it.
    """
    seen = seen if seen is not None else set()
    path = file_of(module)
    if path is None or module in seen or is_plumbing(module):
        return
    seen.add(module)
    tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
    if path.name != "__init__.py" or len(tree.body) > 1:  # a package that is a docstring alone changes no result
        yield path
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ROOMS:
                yield from imported_files(name, seen)


def is_plumbing(module: str) -> bool:
    """Whether a module lies in a room that changes no result."""
    return any(module == room or module.startswith(f"{room}.") for room in PLUMBING)


def file_of(module: str) -> Path | None:
    """The file of a module, relative to the project; None if the name is that of a function or class."""
    path = Path(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if (PROJECT / candidate).is_file()), None)


def _data_beside(folder: Path) -> Iterator[Path]:
    """The files that the modules of a folder read: those beside them, and those in folders without modules."""
    for path in (PROJECT / folder).iterdir():
        if path.is_dir() and path.name != "__pycache__" and not any(path.rglob("*.py")):
            yield from (file.relative_to(PROJECT) for file in path.rglob("*") if file.is_file())
        elif path.is_file() and path.suffix != ".py":
            yield path.relative_to(PROJECT)
