"""Shows the progress of long work: a bar with the time left in a terminal, plain lines where output is piped.

Each finished unit is a step for the watcher of the stage too (`tasks.system.heartbeat`).
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasks.system import heartbeat

PLAIN_INTERVAL_SECONDS = 10.0
"""The least time between two plain lines."""


class Meter:
    """Counts finished units of work and shows their number; `progress` makes one.

    `done` units were finished before, by a run that this one resumes; they do not count for the rate.
    """

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        self.label, self.total, self.done, self.first = label, total, done, done
        self.started = self.printed = time.monotonic()
        self.bar = bar
        self.task = bar.add_task(label, total=total, completed=done, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units; `note` is a short text that is shown beside their number."""
        self.done += count
        heartbeat.step()
        rate = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=f"{rate:.1f}/s {note}")
            return
        now = time.monotonic()
        if now - self.printed >= PLAIN_INTERVAL_SECONDS or self.done >= self.total:
            self.printed = now
            left = max(self.total - self.done, 0) / max(rate, 1e-9)
            print(f"{self.label}: {self.done}/{self.total} {rate:.1f}/s {left:.0f}s left {note}".rstrip(), flush=True)


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A meter for `total` units, of which a run that this one resumes has finished `done`."""
    if not sys.stdout.isatty():
        with heartbeat.loop():
            yield Meter(label, total, done, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console()) as bar, heartbeat.loop():
        yield Meter(label, total, done, bar)
