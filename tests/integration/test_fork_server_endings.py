"""How forked children end: each test begins a process that forks of its own, which imports for seconds."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.fork_server import ForkServer
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")


def test_stopping_ends_the_forks_and_the_process_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(
        "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(3000)"
    )
    children, begun, failures, pids = ChildProcesses(ForkServer()), threading.Event(), [], []

    def hear(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        begun.set()

    def child() -> None:
        try:
            children.run([sys.executable, "-m", "stage"], tmp_path, {}, hear)
        except ChildFailed as failure:
            failures.append(failure.code)

    thread = threading.Thread(target=child)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    children.stop()
    thread.join(PATIENCE_SECONDS)
    assert failures == [-signal.SIGTERM]
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_fork_that_finishes_while_all_are_told_to_end_tells_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")  # then libraries start threads, which could be the ones to take the signal
    forks = ForkServer()
    late = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.5); print('finished')"
    (tmp_path / "stage.py").write_text(late)
    lines: list[str] = []
    ChildProcesses(forks).run([sys.executable, "-m", "stage"], tmp_path, {}, lines.append)
    assert lines == ["finished"]
    forks.close()


def test_a_fork_ends_itself_when_the_flow_is_killed(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(
        "import os, time; from tasks.system.processes import die_with_parent; die_with_parent();"
        "print(os.getpid(), flush=True); time.sleep(3000)"
    )
    parent = (
        "from flows.building.child_processes import ChildProcesses; from flows.building.fork_server import ForkServer;"
        "import sys; from pathlib import Path;"
        "say = lambda line: print(line, flush=True);"
        "ChildProcesses(ForkServer()).run([sys.executable, '-m', 'stage'], Path.cwd(), {}, say)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as flow:
        child = psutil.Process(int(flow.stdout.readline()))
        flow.kill()
        flow.wait()
        gone, alive = psutil.wait_procs([child], timeout=PATIENCE_SECONDS)
    assert gone and not alive
