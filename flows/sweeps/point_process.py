"""A point's process on this machine: how it is started in its folder, and how it is ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.building.child_processes import GRACE_SECONDS
from flows.sweeps.point_folder import LOG_FILE, MODULE, last_lines
from tasks.system.processes import PARENT_VARIABLE, end_processes

PointProcess = subprocess.Popen[bytes]
POINT_GRACE_SECONDS = GRACE_SECONDS + 15
"""How long a point may take to end after TERM. It first gives its own stages GRACE_SECONDS."""


def start(folder: Path, own: Mapping[str, str], kept: Sequence[int] = ()) -> PointProcess:
    """Run the point that is prepared in `folder`, with the environment `own`, and let it inherit the open files `kept`.

    The point's process ends when this process does, even if this one is killed.
    """
    with open(folder / LOG_FILE, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", MODULE],
            cwd=folder,
            env={**own, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=kept,
        )


def end(processes: Sequence[PointProcess]) -> None:
    """Send TERM to these processes and wait for them. Those that still run after POINT_GRACE_SECONDS get KILL."""
    end_processes(processes, POINT_GRACE_SECONDS)


def how_it_ended(process: PointProcess, folder: Path) -> str:
    """How a process that left no outcome has ended, as in `ended by SIGKILL: the last line of its log`."""
    code = process.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"ended by {how}: {last_lines(folder) or 'it said nothing'}"
