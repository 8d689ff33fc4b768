"""A point's process on this machine: begun in its folder, ended with all that it began."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.building.child_processes import GRACE_SECONDS
from flows.sweeps.point_folder import LOG, MODULE, last_lines
from tasks.system.processes import PARENT_VARIABLE, end_processes

PointProcess = subprocess.Popen[bytes]
POINT_GRACE_SECONDS = GRACE_SECONDS + 15
"""A point first gives its own stages GRACE_SECONDS."""


def start(folder: Path, own: Mapping[str, str], kept: Sequence[int] = ()) -> PointProcess:
    """Run the point that is prepared in `folder`, with the environment `own` and the open files `kept`.

    It ends when this process does, however this one ends.
    """
    with open(folder / LOG, "ab") as log:
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
    """Send TERM to these processes, and KILL those that are still there after POINT_GRACE_SECONDS."""
    end_processes(processes, POINT_GRACE_SECONDS)


def ending(process: PointProcess, folder: Path) -> str:
    """How a process that left no outcome ended: `ended by SIGKILL: the last line of its log`."""
    code = process.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"ended by {how}: {last_lines(folder) or 'it said nothing'}"
