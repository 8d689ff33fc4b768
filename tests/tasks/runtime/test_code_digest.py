"""The files that a stage's result depends on are found by the imports of its module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime import code_digest
from tests.helpers.small_workspace import PROJECT

TWO_THREADS = """
import gc, sys, threading, time
from pathlib import Path
from tasks.runtime.code_digest import imports_in

class Garbage:
    def __init__(self):
        self.myself = self
    def __del__(self):
        time.sleep(0)  # another thread goes on here, in the middle of what has met the garbage collector

def parse():
    for code in [path.read_text(encoding="utf-8") for path in Path("tasks").rglob("*.py")]:
        [Garbage() for _ in range(10)]
        imports_in.__wrapped__(code)

gc.set_threshold(20)
threading.excepthook = lambda failed: print(failed.exc_value)
threads = [threading.Thread(target=parse) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_a_stages_code_is_all_it_imports_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "tasks/__init__.py": "",
        "tasks/train.py": "from tasks.helper import help\n",
        "tasks/helper.py": "from model.network import Sana\n",
        "tasks/other.py": "import model.network\n",
        "tasks/system/files.py": "plumbing = 1\n",
        "model/__init__.py": "",
        "model/network.py": "class Sana: ...\n",
        "model/table.txt": "read by a module beside it\n",
        "model/tables/more.txt": "read too\n",
        "model/.network.py.swp": "an editor's\n",
        "tasks/gone/__pycache__/gone.cpython-311.pyc": "left by a module that has moved\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(code_digest, "PROJECT", tmp_path)
    digest = code_digest.code_digest("train")
    counts = {"tasks/train.py", "tasks/helper.py", "model/network.py", "model/table.txt", "model/tables/more.txt"}
    assert {path.as_posix() for path in code_digest.stage_files("train")} == counts
    for name, changes in (("tasks/other.py", False), ("tasks/system/files.py", False), ("model/network.py", True)):
        (tmp_path / name).write_text(files[name] + "# edited\n", encoding="utf-8")
        assert (code_digest.code_digest("train") != digest) == changes, name


def imports_by_syntax(code: str) -> set[str]:
    """The project's modules and names that a module imports, by its syntax tree."""
    nodes = list(ast.walk(ast.parse(code)))
    whole = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names]
    return {name for name in whole + parts if name.split(".")[0] in code_digest.ROOMS}


@pytest.mark.parametrize("room", code_digest.ROOMS)
def test_imports_are_those_of_the_syntax_tree(room: str) -> None:
    for path in (PROJECT / room).rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        only_docstring, found = code_digest.imports_in(code)
        wanted = imports_by_syntax(code)
        packages = {name.rsplit(".", n)[0] for name in wanted for n in range(name.count(".") + 1)}
        assert set(found) == wanted | packages, path
        assert only_docstring == (len(ast.parse(code).body) <= 1), path


def test_imports_are_found_while_another_thread_looks_for_them_too() -> None:
    done = subprocess.run([sys.executable, "-c", TWO_THREADS], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
