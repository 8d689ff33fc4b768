"""The page docs/promises.md names tests that exist."""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs/promises.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| .+ \| `(?P<test>test_\w+)` \| `(?P<file>tests/[\w/]+\.py)` \|$", re.MULTILINE)


def defined_tests(file: Path) -> set[str]:
    """The names of the tests that a file defines."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_page_names_is_in_the_file_it_names() -> None:
    rows = [(row["test"], PROJECT / row["file"]) for row in ROW.finditer(PAGE)]
    missing = [(name, file) for name, file in rows if not file.is_file() or name not in defined_tests(file)]
    assert not missing


def test_every_row_of_the_page_names_a_test_and_its_file() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")][2:]
    assert rows
    assert [row for row in rows if not ROW.match(row)] == []
