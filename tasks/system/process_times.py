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

    `first` says whether it is the first thread of its process.
    """

    ran: int
    waited: int
    times: int
    first: bool


def run_state(pid: int) -> str:
    """The letter of a process's state: `T` is stopped, `t` is held by a debugger; empty if the process has ended."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
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
            found[int(task.name)] = ThreadTimes(ran, waited, times, int(task.name) == process)
            processes += [child for child in children if child != os.getpid()]
    return found


def _tasks_of(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def time_between(before: dict[int, ThreadTimes], after: dict[int, ThreadTimes]) -> tuple[float, float]:
    """The seconds that threads have run, and that they have waited for a processor, between two looks.

    Of threads that are not the first of their process, only those count that compute.
    """
    total_ran = total_waited = 0
    for thread, now in after.items():
        earlier = before.get(thread, ThreadTimes(0, 0, 0, now.first))
        ran, waited, times = now.ran - earlier.ran, now.waited - earlier.waited, now.times - earlier.times
        if now.first or ran > SHORT_RUN * times:
            total_ran, total_waited = total_ran + ran, total_waited + waited
    return total_ran / 1e9, total_waited / 1e9
