"""Locks that the system lets go of when their holders die, however they die: of one process at a time, or of many."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.system.errors import UserError

LOOK_SECONDS = 0.2


@contextmanager
def hold(path: Path, what: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for the block.

    Raises UserError if another process does, and still does after `wait_seconds`: `what` by process N.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_seconds
    with open(path, "a+", encoding="utf-8") as file:
        while not _taken(file):
            if time.monotonic() >= until:
                file.seek(0)
                raise UserError(f"{what} by process {file.read() or '?'}: wait for it, or stop it")
            time.sleep(LOOK_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def share(path: Path) -> None:
    """Hold the lock file `path` with others until this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)


def wait_until_free(path: Path) -> None:
    """Return when no process shares the lock file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
