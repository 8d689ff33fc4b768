"""Imports go one way, from flows to tasks to model to kernels, and one way between the rooms of tasks and of flows.

A room imports only rooms before it. Every folder of code says in its `__init__` what it is for, and has no code there
but re-exports. A module of flows that imports Prefect imports `flows.entry.prefect_environment` first, because Prefect
reads its settings from the environment when it is imported.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("kernels", "model", "tasks", "flows")
"""Each may import those before it, and itself."""
ROOMS_OF_TASKS = (
    ("tasks.system",),
    ("tasks.computing",),
    ("tasks.params",),
    ("tasks.tracking",),
    ("tasks.stages",),
    ("tasks.runtime",),
    ("tasks.data",),
    ("tasks.training",),
    ("tasks.evaluation",),
    ("tasks.reporting", "tasks.planning"),
    ("tasks",),
)
ROOMS_OF_FLOWS = (
    ("flows.entry",),
    ("flows.building",),
    ("flows.full_pipeline",),
    ("flows.sweeps",),
    ("flows.places",),
    ("flows.doctor",),
    ("flows",),
)
"""Rooms from the first to the last; the rooms of one line are side by side and do not import each other.

The last line is the modules that lie in the package itself: the stages and commands.
"""
IMPORTS_NO_ROOM = ("tasks.system", "tasks.computing")
HAS_CODE_IN_INIT = {
    "kernels": "it silences one message of bitsandbytes, which imports this package by its name",
    "kernels.linear_attention": "it picks the kernel",
    "kernels.mix_feed_forward": "it picks the kernel",
    "kernels.modulation": "it picks the kernel",
}


def name_of(path: Path) -> str:
    """The name under which Python imports a file."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> frozenset[str]:
    """The project's modules that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name if name in FILES else name.rpartition(".")[0] for name in found}
    return frozenset(name for name in inside if name in FILES)


def place_in(rooms: tuple[tuple[str, ...], ...], module: str) -> tuple[int, str] | None:
    """The line of a module's room, and the room; the longest name that fits is its room."""
    fitting = [
        (len(room), line, room)
        for line, names in enumerate(rooms)
        for room in names
        if module == room or module.startswith(f"{room}.")
    ]
    return max(fitting)[1:] if fitting else None


def wrong_imports(rooms: tuple[tuple[str, ...], ...]) -> list[str]:
    """Each import of a room that is neither the module's own nor before it."""
    wrong = []
    for module in FILES:
        own = place_in(rooms, module)
        for imported in imports_of(module) if own else ():
            other = place_in(rooms, imported)
            if other and other != own and other[0] >= own[0]:
                wrong.append(f"{module} imports {imported}")
    return sorted(wrong)


def test_packages_import_only_those_below_them() -> None:
    assert wrong_imports(tuple((package,) for package in PACKAGES)) == []


@pytest.mark.parametrize("rooms", (ROOMS_OF_TASKS, ROOMS_OF_FLOWS), ids=("tasks", "flows"))
def test_rooms_import_only_rooms_before_them(rooms: tuple[tuple[str, ...], ...]) -> None:
    assert wrong_imports(rooms) == []


@pytest.mark.parametrize("room", IMPORTS_NO_ROOM)
def test_the_first_rooms_import_no_room(room: str) -> None:
    for module in FILES:
        if module.startswith(f"{room}."):
            assert [name for name in imports_of(module) if not name.startswith(room)] == [], module


@pytest.mark.parametrize("rooms", (ROOMS_OF_TASKS, ROOMS_OF_FLOWS), ids=("tasks", "flows"))
def test_every_room_has_its_place_in_the_order(rooms: tuple[tuple[str, ...], ...]) -> None:
    package = rooms[-1][0]
    folders = {f"{package}.{path.parent.name}" for path in (PROJECT / package).glob("*/__init__.py")}
    named = {room for line in rooms for room in line}
    assert folders - named == set()
    assert named - set(FILES) == set()


def test_a_wrong_import_would_be_found() -> None:
    """The other way round nearly every room imports what is after it, so the comparison above does compare."""
    assert any("tasks.params" in line for line in wrong_imports(ROOMS_OF_TASKS[::-1]))
    assert any("flows.entry" in line for line in wrong_imports(ROOMS_OF_FLOWS[::-1]))


def test_every_folder_of_code_says_what_it_is_for() -> None:
    for module, path in FILES.items():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"
        assert ast.get_docstring(tree_of(module)), f"{module} has no docstring"


def test_an_init_has_no_code_but_re_exports() -> None:
    with_code = set()
    for module, path in FILES.items():
        if path.name == "__init__.py":
            _docstring, *rest = tree_of(module).body
            if any(not isinstance(node, ast.ImportFrom) and not is_list_of_exports(node) for node in rest):
                with_code.add(module)
    assert with_code == set(HAS_CODE_IN_INIT)


def is_list_of_exports(node: ast.stmt) -> bool:
    """Whether a statement is `__all__ = ...`."""
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]


def first_line(module: str, imported: str) -> int | None:
    """The first line at which a module's own body imports a module, or something out of it."""
    for node in tree_of(module).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name == imported or name.startswith(f"{imported}.") for name in names):
            return node.lineno
    return None


def test_prefect_finds_its_environment_set() -> None:
    importing = {module: line for module in FILES if (line := first_line(module, "prefect")) is not None}
    assert "flows.full_pipeline" in importing
    for module, line in importing.items():
        before = first_line(module, "flows.entry.prefect_environment")
        assert before is not None and before < line, module
