"""Child processes of a flow: their output streamed line by line, ended together when the flow is stopped."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from flows.building.fork_server import Fork, ForkServer
from tasks.system.processes import LEASE_VARIABLE, PARENT_VARIABLE, end_processes

GRACE_SECONDS = 30.0


class ChildFailed(Exception):
    """A child that ended with a non-zero code; its message is the child's own last line."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ChildProcesses:
    """The children of one flow run; with `forks`, those that are Python modules begin as its forks."""

    def __init__(self, forks: ForkServer | None = None) -> None:
        self._forks = forks
        self._running: set[Fork | subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopping = False

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Callable[[str], None]
    ) -> None:
        """Run `command` in `folder` to its end, passing each line that it prints to `log`.

        The child is in a session of its own, so that Ctrl-C reaches it once, from `stop`, and ends itself if this
        process is killed (`tasks.system.processes.die_with_parent`). Raises ChildFailed.
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
        with self._lock:  # not where Ctrl-C came in between: then `stop` ends it
            self._running.discard(process)
        if code != 0:
            raise ChildFailed(code, errors[-1] if errors else _ending(code))

    def refuse_if_stopping(self) -> None:
        """Raise ChildFailed if no child may begin any more."""
        if self.stopping:
            raise ChildFailed(128 + signal.SIGTERM, "stopped before it began")

    def _start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> Fork | subprocess.Popen[str]:
        if self._forks is not None and list(command[:2]) == [sys.executable, "-m"]:
            return self._forks.start(command[2:], folder, environment)
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
            pass_fds=[int(lease)] if (lease := os.environ.get(LEASE_VARIABLE)) else [],
        )

    def stop(self) -> None:
        """TERM every child and wait for it; KILL what is still there after the time a checkpoint takes."""
        with self._lock:
            self.stopping = True
            running = list(self._running)
        end_processes(running, GRACE_SECONDS)
        if self._forks is not None:
            self._forks.close()


def _stream(pipe: IO[str], log: Callable[[str], None], last: list[str]) -> None:
    """Pass the lines of `pipe` to `log`, leaving the last one that is not blank in `last`."""
    with pipe:
        for line in pipe:
            if text := line.rstrip():
                log(text)
                last[:] = [text]


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code} and said nothing"
