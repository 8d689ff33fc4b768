"""Forked children are processes of their own, start at once, and never run old code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.fork_server import ForkServer, can_fork

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    forks = ForkServer()
    yield forks
    forks.close()


def run(forks: ForkServer, folder: Path, code: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a module of this code prints."""
    (folder / "stage.py").write_text(code)
    lines: list[str] = []
    ChildProcesses(forks).run([sys.executable, "-m", "stage", *arguments], folder, environment, lines.append)
    return lines


@on_linux
def test_a_fork_has_its_own_folder_arguments_environment_and_session(forks: ForkServer, tmp_path: Path) -> None:
    code = (
        "import os, sys; print(__name__, sys.argv, os.getcwd(), os.environ['COLOUR'], os.getsid(0) == os.getpid(),"
        " sorted(os.listdir('/proc/self/fd')))"
    )
    argv = [str(tmp_path / "stage.py"), "--depth", "3"]
    # its three streams, and the folder that is being listed
    expected = f"__main__ {argv} {tmp_path} red True {['0', '1', '2', '3']}"
    assert run(forks, tmp_path, code, "--depth", "3", COLOUR="red") == [expected]


def test_children_are_forked_unless_they_may_touch_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = tmp_path / "gpu"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("flows.building.fork_server.GPU_DEVICES", (str(gpu),))
    assert [can_fork(device) for device in ("cpu", "auto")] == [True, True]
    gpu.touch()
    assert [can_fork(device) for device in ("cpu", "auto", "cuda")] == [True, False, False]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not can_fork("cpu")


@on_linux
def test_libraries_are_imported_before_a_fork_begins(forks: ForkServer, tmp_path: Path) -> None:
    code = "import sys; print(*[name in sys.modules for name in ('torch', 'diffusers', 'transformers', 'accelerate')])"
    assert run(forks, tmp_path, code) == ["True True True True"]


@on_linux
def test_a_stages_code_is_read_when_it_starts(forks: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for value in ("old", "newer"):
        (tmp_path / "model/__init__.py").write_text(f"VALUE = {value!r}")
        assert run(forks, tmp_path, "from model import VALUE; print(VALUE)") == [value]


@on_linux
def test_a_forks_failure_says_its_own_last_line(forks: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"^the reason$") as failure:
        run(forks, tmp_path, "import sys; print('out'); print('the reason', file=sys.stderr); sys.exit(2)")
    assert failure.value.code == 2
    with pytest.raises(ChildFailed, match=r"^ZeroDivisionError: division by zero$") as failure:
        run(forks, tmp_path, "1 / 0")
    assert failure.value.code == 1
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        run(forks, tmp_path, "import os; os.kill(os.getpid(), 9)")
