"""Processes: how one ends another, how one ends with its parent, and how much memory it took."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Protocol

PARENT_VARIABLE = "SANA15_PARENT_PID"
"""Names the process that started this one, for `die_with_parent`."""
LEASE_VARIABLE = "SANA15_GPU_LEASE"
"""Names the open file whose lock keeps a GPU for a flow; its children have it too, for as long as they compute."""
PARENT_LOOK_SECONDS = 0.5
TERM_AGAIN_SECONDS = 1.0


class Process(Protocol):
    """What `end_processes` needs of a `subprocess.Popen`, a `psutil.Process` or a child of the fork server."""

    @property
    def pid(self) -> int:
        """Its process id, which is that of its session too."""

    def terminate(self) -> None:
        """Send TERM."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Return when it has ended. Raises TimeoutExpired, subprocess's or psutil's."""


def end_processes(processes: Sequence[Process], grace_seconds: float, whole_sessions: bool = False) -> None:
    """Send TERM to these processes and wait for them; KILL those that take longer than `grace_seconds`.

    Each process leads a session of its own, and KILL goes to all of the session. With `whole_sessions` TERM does too;
    otherwise a process that gets TERM ends its own children.
    """
    import psutil  # here, since stages start often and do not need it

    for process in processes:
        if whole_sessions:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
    for process in processes:
        try:
            process.wait(grace_seconds)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            with suppress(ProcessLookupError):  # it may have ended just now
                os.killpg(process.pid, signal.SIGKILL)


def peak_memory(device: str) -> int:
    """The most memory that this process has had, in bytes: the GPU's, where it computes on one."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def exit_on_term_or_with_parent() -> None:
    """Exit on TERM with code 128 + its number, and when the process that started this one is gone."""
    die_with_parent()
    signal.signal(signal.SIGTERM, _exit_on_term)


def ignore_term() -> None:
    """Ignore TERM from now on, where `exit_on_term_or_with_parent` has been called."""
    if signal.getsignal(signal.SIGTERM) is _exit_on_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def die_with_parent() -> None:
    """Send this process TERM when the process of `PARENT_VARIABLE`, which started it, is gone.

    A thread looks for the parent twice a second, which works on every system. Without the variable nothing is done.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_LOOK_SECONDS)
        while True:  # an exit that falls into one of the interpreter's own callbacks is lost
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TERM_AGAIN_SECONDS)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _exit_on_term(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)
