"""A flow hears its child processes while they run, says why they fail, and leaves none behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows.building.child_processes import ChildFailed, ChildProcesses
from tasks.system.exit_codes import BAD_INPUT
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT

SLEEPER = "import time; print('begun', flush=True); time.sleep(3000)"


def test_lines_arrive_while_the_child_runs(tmp_path: Path) -> None:
    code = "import os, time\nprint('one')\nwhile not os.path.exists('heard'):\n    time.sleep(0.01)\nprint('two')"
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        (tmp_path / "heard").touch()  # the child waits for it

    ChildProcesses().run([sys.executable, "-c", code], tmp_path, {}, hear)
    assert lines == ["one", "two"]


def test_a_failure_says_the_childs_own_last_line(tmp_path: Path) -> None:
    code = "import sys; print('out'); sys.stderr.write('first\\nthe reason\\n\\n'); sys.exit(2)"
    with pytest.raises(ChildFailed, match=r"^the reason$") as failure:
        ChildProcesses().run([sys.executable, "-c", code], tmp_path, {}, print)
    assert failure.value.code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="hangs are looked for on Linux alone")
def test_a_child_that_hangs_fails_with_its_watchers_line_so_that_its_task_is_retried(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\nfrom pathlib import Path\nfrom tasks.runtime.hang_rules import Limits\n"
        "from tasks.runtime.hang_watch import watched_process\n"
        "with watched_process('demo', Path('stacks'), Limits(still=1.0, look=0.1)):\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    time.sleep(3600)\n"  # it goes on for a moment, to write its stacks
    )
    with pytest.raises(ChildFailed, match=r"^demo: no step for .*: it is stopped, as by SIGSTOP; .*") as failure:
        ChildProcesses().run([sys.executable, "-c", code], tmp_path, {"PYTHONPATH": str(PROJECT)}, print)
    assert failure.value.code == -signal.SIGKILL != BAD_INPUT


def test_a_killed_child_is_said_to_be_killed(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        ChildProcesses().run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path, {}, print)


def test_stopping_ends_the_children_and_starts_no_more(tmp_path: Path) -> None:
    children, begun, failures = ChildProcesses(), threading.Event(), []

    def run() -> None:
        try:
            children.run([sys.executable, "-c", SLEEPER], tmp_path, {}, lambda _line: begun.set())
        except ChildFailed as failure:
            failures.append(failure.code)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    children.stop()
    thread.join(PATIENCE_SECONDS)
    assert failures == [-signal.SIGTERM]
    with pytest.raises(ChildFailed, match="stopped before it began"):
        children.run([sys.executable, "-c", "print('never')"], tmp_path, {}, print)


def test_a_child_ends_itself_when_its_parent_is_killed(tmp_path: Path) -> None:
    stage = "from tasks.system.processes import die_with_parent; die_with_parent(); " + SLEEPER.replace(
        "'begun'", "__import__('os').getpid()"
    )
    parent = (
        "from pathlib import Path; from flows.building.child_processes import ChildProcesses as Children; import sys;"
        f"Children().run([sys.executable, '-c', {stage!r}], Path('.'), {{}}, lambda line: print(line, flush=True))"
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


def test_a_child_whose_wait_was_interrupted_is_ended_with_the_others(tmp_path: Path) -> None:
    children, pids = ChildProcesses(), []

    def heard(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt  # as Ctrl-C does in the thread that waits

    with pytest.raises(KeyboardInterrupt):
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(3000)"
        children.run([sys.executable, "-c", code], tmp_path, {}, heard)
    children.stop()
    assert not psutil.pid_exists(pids[0])
