"""Child processes of a flow: their output is streamed line by line, and all are ended when the flow is stopped."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from flows.building.fork_server import ForkedProcess, ForkServer
from tasks.system.processes import LEASE_VARIABLE, PARENT_VARIABLE, end_processes

GRACE_SECONDS = 30.0
"""How long a child may take to end after TERM. A training stage saves a checkpoint in this time."""


class ChildFailed(Exception):
    """A child ended with a non-zero code. The message is the last line that the child wrote to its standard error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ChildProcesses:
    """The children of one flow run. With a `fork_server`, it forks the children that are Python modules."""

    def __init__(self, fork_server: ForkServer | None = None) -> None:
        self._fork_server = fork_server
        self._running: set[ForkedProcess | subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopping = False

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Callable[[str], None]
    ) -> None:
        """Run `command` in `folder` to its end, and pass each line that it prints to `log`.

        The child has a session of its own. Otherwise Ctrl-C would reach it twice: from the terminal, and from `stop`.
        It ends itself if this process is killed (`tasks.system.processes.die_with_parent`). Raises ChildFailed.
        """
        with self._lock:
            self.refuse_if_stopping()
            process = self._start(command, folder, environment)
            self._running.add(process)
        errors: list[str] = []
        reader = threading.Thread(target=_stream, args=(process.stderr, log, errors), daemon=True)
        reader.start()
        _stream(process.stdout, log, [])
        code = process.wait()
        reader.join()
        # This is in no `finally` on purpose: if Ctrl-C interrupts the wait, the child stays listed for `stop` to end.
        with self._lock:
            self._running.discard(process)
        if code != 0:
            raise ChildFailed(code, errors[-1] if errors else _how_it_ended(code))

    def refuse_if_stopping(self) -> None:
        """Raise ChildFailed if `stop` has been called, after which no child may begin."""
        if self.stopping:
            raise ChildFailed(128 + signal.SIGTERM, "stopped before it began")

    def _start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> ForkedProcess | subprocess.Popen[str]:
        if self._fork_server is not None and list(command[:2]) == [sys.executable, "-m"]:
            return self._fork_server.start(command[2:], folder, environment)
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            # The child inherits the file whose lock keeps the GPU, so that no other point gets the GPU before it ends.
            pass_fds=[int(lease)] if (lease := os.environ.get(LEASE_VARIABLE)) else [],
        )

    def stop(self) -> None:
        """Send TERM to every child and wait for it. Children that still run after GRACE_SECONDS get KILL."""
        with self._lock:
            self.stopping = True
            running = list(self._running)
        end_processes(running, GRACE_SECONDS)
        if self._fork_server is not None:
            self._fork_server.close()


def _stream(pipe: IO[str], log: Callable[[str], None], last: list[str]) -> None:
    """Pass the lines of `pipe` to `log`, and keep the last line that is not blank in `last`."""
    with pipe:
        for line in pipe:
            if text := line.rstrip():
                log(text)
                last[:] = [text]


def _how_it_ended(code: int) -> str:
    """The reason of a failure for a child that has written nothing to its standard error."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code} and said nothing"
