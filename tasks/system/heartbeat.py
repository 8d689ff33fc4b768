"""Writes down how far this process has come, in memory that another process reads (`tasks.runtime.hang_watch`).

The record is a small file that both map into their memory. A step costs one addition and no system call. Where nobody
watches there is no record, and the functions here do nothing.

A loop of steps has a number of its own, so that the watcher learns how long its steps usually take. A pause is work
between two steps that is no step, such as an evaluation. A thread counts seconds beside them. It stands still if the
process is stopped, or if a call into C holds Python's interpreter lock (GIL).
"""

import faulthandler
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE = "SANA15_HEARTBEATS"
"""Names the folder of the records to the ranks of a stage."""
STACKS_SIGNAL = signal.SIGUSR2
"""On this signal a process writes the stacks of its threads; it does so from C, also while a call holds the GIL."""
PULSE_SECONDS = 1.0
OUTSIDE, PAUSED = 0, -1
"""What stands in place of a loop's number before and behind loops, and during a pause."""
CELL_BYTES = 8


class Beat(NamedTuple):
    """The record of a process: its id (0 when it has ended), its loop, its finished steps in it, and its pulse."""

    pid: int
    loop: int
    steps: int
    pulse: int


class Heartbeat:
    """The record of this process, and the file to which it writes its stacks."""

    def __init__(self, folder: Path, rank: int) -> None:
        with open(record_of(folder, rank), "w+b") as file:
            file.truncate(len(Beat._fields) * CELL_BYTES)
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._stacks = open(stacks_of(folder, rank), "ab")  # faulthandler writes to it until `end`
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        self.thread = threading.get_ident()
        self._numbers = count(1)
        self._ended = threading.Event()
        self._cells[0] = os.getpid()
        threading.Thread(target=self._beat, daemon=True, name="pulse").start()

    def step(self) -> None:
        """Count a finished step of the loop."""
        self._cells[2] += 1

    @contextmanager
    def inside(self, loop: int) -> Iterator[None]:
        """Be in another loop, or in a pause, for the block; the loop around it then goes on with its own count."""
        outer, steps = self._cells[1], self._cells[2]
        self._cells[1], self._cells[2] = loop, 0
        try:
            yield
        finally:
            self._cells[1], self._cells[2] = outer, steps

    def next_loop(self) -> int:
        """The number of a new loop, from 1."""
        return next(self._numbers)

    def end(self) -> None:
        """Say that this process is no longer to be watched."""
        self._cells[0] = 0
        self._ended.set()
        faulthandler.unregister(STACKS_SIGNAL)
        self._stacks.close()

    def _beat(self) -> None:
        while not self._ended.wait(PULSE_SECONDS):
            self._cells[3] += 1


_own: Heartbeat | None = None


def start_heartbeat(folder: Path, rank: int) -> None:
    """Write this process's record into `folder` from now on."""
    global _own
    _own = Heartbeat(folder, rank)


def end_heartbeat() -> None:
    """Write no more; nothing happens if no record has been started."""
    global _own
    if _own is not None:
        _own.end()
        _own = None


def step() -> None:
    """Count a finished step."""
    if (own := _of_this_thread()) is not None:
        own.step()


@contextmanager
def loop() -> Iterator[None]:
    """Make the block a loop of steps. It may lie inside another loop."""
    own = _of_this_thread()
    with nullcontext() if own is None else own.inside(own.next_loop()):
        yield


@contextmanager
def pause() -> Iterator[None]:
    """Make the block work that is no step, so that it may take longer than one."""
    own = _of_this_thread()
    with nullcontext() if own is None else own.inside(PAUSED):
        yield


def _of_this_thread() -> Heartbeat | None:
    """The record, in the thread that has started it. Other threads, as the one that writes states, make no steps."""
    return _own if _own is not None and threading.get_ident() == _own.thread else None


def _forget() -> None:
    """Leave the record to the process that has started it; runs first in a process that was forked from it."""
    global _own
    _own = None


os.register_at_fork(after_in_child=_forget)


def record_of(folder: Path, rank: int) -> Path:
    """The file of a rank's record."""
    return folder / f"rank-{rank:05d}"


def stacks_of(folder: Path, rank: int) -> Path:
    """The file of a rank's stacks."""
    return folder / f"stacks-{rank:05d}"


def read_beats(folder: Path) -> dict[int, Beat]:
    """The records of the ranks in `folder` that are running, by rank."""
    found = {}
    for path in folder.glob("rank-*"):
        cells = memoryview(path.read_bytes()).cast("B")
        if len(cells) == len(Beat._fields) * CELL_BYTES and (beat := Beat(*cells.cast("q"))).pid:
            found[int(path.name.removeprefix("rank-"))] = beat
    return found
