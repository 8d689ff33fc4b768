"""Claims about ending processes: TERM is enough for most, and KILL reaches what does not listen."""

import signal
import subprocess
import sys

import psutil

from tasks.system.processes import end_processes

LISTENS = "print('ready', flush=True); import time; time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
WITH_CHILD = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    f"print(child.pid, flush=True); {LISTENS}"
)


def begun(code: str) -> subprocess.Popen[str]:
    """A process that runs `code` in a session of its own."""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def said(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_that_listens_is_ended_by_term_and_one_that_does_not_by_kill() -> None:
    processes = [begun(LISTENS), begun(DEAF + LISTENS)]
    assert [said(process) for process in processes] == ["ready", "ready"]
    end_processes(processes, grace_seconds=1.0)
    assert [process.wait(20) for process in processes] == [-signal.SIGTERM, -signal.SIGKILL]


def test_kill_reaches_the_children_of_a_process_that_does_not_listen() -> None:
    process = begun(DEAF + WITH_CHILD)
    child = psutil.Process(int(said(process)))
    end_processes([process], grace_seconds=0.5)
    assert process.wait(20) == -signal.SIGKILL
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_term_reaches_the_whole_session_where_it_is_asked_for() -> None:
    process = begun(WITH_CHILD)
    child = psutil.Process(int(said(process)))
    assert said(process) == "ready"
    end_processes([psutil.Process(process.pid)], grace_seconds=20.0, whole_sessions=True)
    assert not psutil.pid_exists(process.pid)
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
