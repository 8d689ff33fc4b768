"""Finds the project's files that a stage's result depends on, by the imports of its module."""

from collections.abc import Iterator
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType

from tasks.system.manifest import sha256_file, sha256_json

PROJECT = Path(__file__).parents[2]
ROOMS = ("tasks", "model", "kernels")
PLUMBING = (
    "tasks.evaluation.short_evaluation",
    "tasks.evaluation.short_scoring",
    "tasks.params",
    "tasks.runtime",
    "tasks.stages",
    "tasks.system",
    "tasks.tracking",
    "tasks.training.drawing_in_training",
    "tasks.training.preview",
)
"""The rooms that run a stage, read its params, report on it or name its folders, and the modules that draw for MLflow.

An edit there does not repeat a stage, or every edit would repeat all. If one changes numbers all the same (how
`tasks.runtime.torch_setup` sets torch up, for instance), repeat the stages with `dvc repro --force`.
"""


def code_digest(stem: str) -> str:
    """The digest of the files that a stage's result depends on, by the stage's stem (`finetune`)."""
    return sha256_json({path.as_posix(): sha256_file(PROJECT / path) for path in stage_files(stem)})


def stage_files(stem: str) -> list[Path]:
    """The files that a stage's result depends on, relative to the project: its modules, and the data beside them."""
    modules = set(imported_files(f"tasks.{stem}"))
    data = {file for folder in {module.parent for module in modules} for file in _data_beside(folder)}
    return sorted(modules | data)


def imported_files(module: str, seen: set[str] | None = None) -> Iterator[Path]:
    """The file of a module, and the project's files that it imports, directly or through others.

    `seen` are modules that have been looked at already; the function adds to it.
    """
    seen = seen if seen is not None else set()
    path = file_of(module)
    if path is None or module in seen or is_plumbing(module):
        return
    seen.add(module)
    only_docstring, names = imports_in((PROJECT / path).read_text(encoding="utf-8"))
    if path.name != "__init__.py" or not only_docstring:  # such a package changes no result
        yield path
    for name in names:
        yield from imported_files(name, seen)


@cache
def imports_in(code: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a module is a docstring alone, and what it imports from the project, with the packages around it.

    The imports are read from the compiled code. `ast.parse` fails now and then while other threads parse
    (https://github.com/python/cpython/issues/106905), and a flow has other threads.
    """
    compiled = compile(code, "<module>", "exec", dont_inherit=True)
    ours = [name.split(".") for name in _imported(compiled) if name.split(".")[0] in ROOMS]
    names = dict.fromkeys(".".join(parts[:n]) for parts in ours for n in range(1, len(parts) + 1))
    return set(compiled.co_names) <= {"__doc__"}, tuple(names)


def _imported(code: CodeType) -> Iterator[str]:
    """What a module's code imports, at its top or inside functions: modules, and names of modules behind a dot."""
    for kind, found in ModuleFinder().scan_opcodes(code):
        if kind == "absolute_import":
            names, module = found
            yield from (f"{module}.{name}" for name in names) if names else (module,)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported(constant)


def is_plumbing(module: str) -> bool:
    """Whether a module lies in a room that changes no result."""
    return any(module == room or module.startswith(f"{room}.") for room in PLUMBING)


def file_of(module: str) -> Path | None:
    """The file of a module, relative to the project; None if the name is that of a function or class."""
    path = Path(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if (PROJECT / candidate).is_file()), None)


def _data_beside(folder: Path) -> Iterator[Path]:
    """The files that the modules of a folder read: those beside them, and those in folders without modules.

    Hidden files, such as an editor's, and Python's caches are none.
    """
    below = [path for path in (PROJECT / folder).iterdir() if path.is_dir() and not any(path.rglob("*.py"))]
    for path in [*(PROJECT / folder).iterdir(), *(file for one in below for file in one.rglob("*"))]:
        place = path.relative_to(PROJECT)
        ours = not any(part.startswith(".") or part == "__pycache__" for part in place.parts)
        if ours and path.is_file() and path.suffix not in (".py", ".pyc"):
            yield place
