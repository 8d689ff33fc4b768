"""What the processes of a run have in common: whose child one is, when it ends, and what memory it took."""

import os
import resource
import signal
import sys
import threading
import time
from types import FrameType

BAD_INPUT = 2
"""The exit code of a process that was given what it cannot use, after one line that says so."""
PARENT_VARIABLE = "SANA15_PARENT_PID"
LEASE_VARIABLE = "SANA15_GPU_LEASE"
"""Names the open file whose lock keeps a GPU for a flow; its children hold it too, for as long as they compute."""


def peak_memory(device: str) -> int:
    """The most memory that this process has had, in bytes: the GPU's, where it computes on one."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def end_when_told() -> None:
    """End this process on TERM, with its own exit code, and when the process that started it is gone."""
    die_with_parent()
    signal.signal(signal.SIGTERM, _exit_on_term)


def end_undisturbed() -> None:
    """Do not end on TERM any more, where `end_when_told` has been called."""
    if signal.getsignal(signal.SIGTERM) is _exit_on_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def die_with_parent() -> None:
    """End this process when the flow that started it is gone (polled, so that it works on every system)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        while True:  # an exit that falls into one of the interpreter's own callbacks is lost
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _exit_on_term(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def complain(message: object, code: int) -> int:
    """Print one line, and return the exit code."""
    print(f"sana15: {message}", file=sys.stderr)
    return code
