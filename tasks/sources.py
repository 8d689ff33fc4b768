"""Which of the project's files a stage is made of, read from their imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tasks.files import sha256_file, sha256_json

PROJECT = Path(__file__).parents[1]
ROOMS = ("tasks", "model", "kernels")
# what runs a stage, reports on it, or names its folders, and changes no result
PLUMBING = {
    "tasks",
    "tasks.context",
    "tasks.errors",
    "tasks.files",
    "tasks.launch",
    "tasks.layout",
    "tasks.locks",
    "tasks.mlflow_store",
    "tasks.params",
    "tasks.processes",
    "tasks.progress",
    "tasks.registry",
    "tasks.shipping",
    "tasks.sources",
    "tasks.spool",
    "tasks.stage",
    "tasks.tracking",
    "tasks.worker",
}


def code_digest(stage: str) -> str:
    """Digest of the files that make up a stage (`finetune@6`), but for plumbing."""
    files = sorted(set(imported_files(module_of(stage.partition("@")[0]))))
    return sha256_json({path.as_posix(): sha256_file(PROJECT / path) for path in files})


def module_of(stage: str) -> str:
    """The module that runs a stage by its name: `tasks.geneval.__main__` for `geneval`."""
    package = (PROJECT / "tasks" / stage).is_dir()
    return f"tasks.{stage}.__main__" if package else f"tasks.{stage}"


def imported_files(module: str, seen: set[str] | None = None) -> Iterator[Path]:
    """The project's files that a module is made of: its own, and those it imports directly or through others."""
    seen = seen if seen is not None else set()
    path = file_of(module)
    if path is None or module in seen or module in PLUMBING:
        return
    seen.add(module)
    if path.name != "__init__.py" or (PROJECT / path).stat().st_size > 200:  # an empty package is no dependency
        yield path
    for node in ast.walk(ast.parse((PROJECT / path).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ROOMS:
                yield from imported_files(name, seen)


def file_of(module: str) -> Path | None:
    """The file of a module of the project, relative to it; None if the name is none (a function that is imported)."""
    path = Path(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if (PROJECT / candidate).is_file()), None)
