"""Locks on files. The system releases a lock when every process that has it is gone, however they ended.

All locks are `flock`'s: a lock belongs to an open file, so a child that inherits the open file keeps the lock too.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.system.errors import UserError

LOOK_SECONDS = 0.2
"""How often a lock that another process has is tried again."""


@contextmanager
def exclusive_lock(path: Path, what: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Have the lock of the file `path` for the block, alone. The file then holds this process's id.

    Raises UserError if another process has the lock, and still has it after `wait_seconds`. The message begins with
    `what`, which says what that process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_seconds
    with open(path, "a+", encoding="utf-8") as file:
        while not try_to_lock(file):
            if time.monotonic() >= until:
                file.seek(0)
                raise UserError(f"{what} by process {file.read() or '?'}: wait for it, or stop it")
            time.sleep(LOOK_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def keep_shared_lock(path: Path) -> None:
    """Take the lock of the file `path` together with others, and keep it until this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)


def wait_until_unlocked(path: Path) -> None:
    """Return when no process has the lock of the file `path`, alone or with others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        lock(file)


def lock(file: IO[str] | int) -> None:
    """Take the lock of an open file (or its descriptor) alone, as soon as no other process has it."""
    fcntl.flock(file, fcntl.LOCK_EX)


def try_to_lock(file: IO[str] | int) -> bool:
    """Take the lock of an open file (or its descriptor) alone; False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of the file `path` alone. The file is not written.

    The question takes a shared lock for an instant. A process that tries to take the lock in that instant is refused.
    """
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
