"""What Linux says of a process while it runs: whether it is stopped, and the processor time of all below it."""

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
SHORT_RUN = 500_000
"""Nanoseconds. A thread that runs for less at a time does not compute.

A thread that waits for Python's lock wakes 200 times a second, and on a busy machine waits for a processor each time.
"""


class ThreadTimes(NamedTuple):
    """Nanoseconds that a thread has run and has waited, ready to run, for a processor; and how often it has run.

    `first` says whether it is the first thread of its process, and `ready` whether it runs or is ready to run.
    """

    ran: int
    waited: int
    times: int
    first: bool
    ready: bool


def run_state(pid: int) -> str:
    """The letter of a process's state: `T` is stopped, `t` is held by a debugger; empty if the process has ended."""
    return _state_in(PROC / str(pid))


def _state_in(folder: Path) -> str:
    try:
        line = (folder / "stat").read_text()
    except OSError:
        return ""
    state = line.rpartition(")")[2].split()[0]  # the name before it may hold blanks and brackets
    return "" if state in "ZX" else state


def threads_below(pid: int) -> dict[int, ThreadTimes]:
    """The times of all threads of a process and of its children and theirs, without this process; by thread id.

    It is empty on a kernel that does not count them (`CONFIG_SCHED_INFO`).
    """
    found: dict[int, ThreadTimes] = {}
    processes = [pid]
    while processes:
        process = processes.pop()
        for task in _tasks_of(process):
            try:
                ran, waited, times = map(int, (task / "schedstat").read_text().split())
                children = [int(one) for one in (task / "children").read_text().split()]
            except (OSError, ValueError):
                continue  # the thread has ended
            found[int(task.name)] = ThreadTimes(ran, waited, times, int(task.name) == process, _state_in(task) == "R")
            processes += [child for child in children if child != os.getpid()]
    return found


def _tasks_of(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def time_between(
    before: dict[int, ThreadTimes], after: dict[int, ThreadTimes], elapsed: float, computing_alone: bool
) -> tuple[float, float]:
    """The seconds that threads have run, and that they have waited for a processor, between two looks.

    `elapsed` is the time between the looks, in seconds. If `computing_alone`, only those threads count that compute,
    and the first of each process. Linux adds a wait when it is over, so it may be longer than `elapsed`. A wait that
    has not ended is known by the thread's being ready without having run.
    """
    total_ran = total_waited = 0
    for thread, now in after.items():
        earlier = before.get(thread, ThreadTimes(0, 0, 0, now.first, False))
        ran, waited, times = now.ran - earlier.ran, now.waited - earlier.waited, now.times - earlier.times
        if now.ready and ran == 0:
            waited = max(waited, round(elapsed * 1e9))
        if now.first or not computing_alone or ran > SHORT_RUN * times:
            total_ran, total_waited = total_ran + ran, total_waited + waited
    return total_ran / 1e9, total_waited / 1e9
