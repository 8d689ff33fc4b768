"""Watches the processes of a stage, and kills them if they hang: `python -m tasks.runtime.hang_watch JOB`.

The process that was asked for a stage starts the watcher as its child. It is a process of its own, because a process
that is stopped, or in which a call holds Python's lock, cannot watch itself. It imports nothing but Python's own
library. It reads the records of `tasks.system.heartbeat` once a second, and Linux's account of each process.

If the rules of `tasks.runtime.hang_rules` say that the stage hangs, all processes write their stacks. Then a report
names the one that stands still, and all are killed. The stage's caller sees a crash, and may run it again.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.runtime.hang_rules import Limits, RankPace, Standing, explanation, hangs
from tasks.system.heartbeat import STACKS_SIGNAL, Beat, end_heartbeat, read_beats, stacks_of, start_heartbeat
from tasks.system.process_times import ThreadTimes, run_state, threads_below, time_between

PROJECT = Path(__file__).parents[2]
OFF_VARIABLE = "SANA15_NO_WATCH"
"""If it is set, nothing is watched: a debugger that waits for a person looks as a hang does."""
COMPILING_STILL_SECONDS = 600.0
"""The least time without a step where torch compiles, which it does again for each new shape."""
STACKS_SECONDS = 2.0
"""How long a process may take to write its stacks. A process in the kernel's hands may never."""
LATE_LOOKS = 5
"""The time since the last look counts as so many looks at most."""
BUSY_SHARE = 0.01
"""A process uses a processor if it does so for more than this part of the time."""
HELD_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, STACKS_SIGNAL}
"""Signals that reach all processes of a terminal or a job. The watcher ends with its parent alone."""
FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


@dataclass(frozen=True)
class WatchJob:
    """What a watcher must know: the stage's name, how many ranks it has, and the places of records and of the report.

    `records` is the folder of the processes' records, `stacks` the folder for their stacks, and `report` the file for
    what was found.
    """

    name: str
    ranks: int
    records: str
    stacks: str
    report: str
    limits: Limits

    def as_argument(self) -> str:
        """The job as an argument of the watcher's command line."""
        return json.dumps(asdict(self))


def read_argument(text: str) -> WatchJob:
    """The job that `as_argument` has written."""
    values = json.loads(text)
    return WatchJob(**values | {"limits": Limits(**values["limits"])})


def limits_of(compiles: bool) -> Limits:
    """The limits of a stage. `compiles` says whether torch compiles its network."""
    return Limits(still=COMPILING_STILL_SECONDS) if compiles else Limits()


@contextmanager
def watched(job: WatchJob) -> Iterator[None]:
    """Have the processes watched that write records into `job.records`, for the block.

    Only Linux says what the watcher asks for, so elsewhere nothing is watched.
    """
    if sys.platform != "linux" or OFF_VARIABLE in os.environ:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # the child inherits it
    try:
        # without `site`, Python starts in a third of the time
        watcher = subprocess.Popen(
            [sys.executable, "-S", "-m", __name__, job.as_argument()],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


@contextmanager
def watched_process(name: str, stacks: Path, limits: Limits) -> Iterator[None]:
    """Have this process watched for the block, in which it computes the stage `name`."""
    with tempfile.TemporaryDirectory(prefix="sana15-heartbeat-") as folder:
        start_heartbeat(Path(folder), 0)
        job = WatchJob(name, 1, folder, str(stacks), str(Path(folder, "report.json")), limits)
        try:
            with watched(job):
                yield
        finally:
            end_heartbeat()


class Watcher:
    """The watcher's own process. `look` is called again and again, and kills what hangs."""

    def __init__(self, job: WatchJob, parent: int) -> None:
        self.job, self.parent = job, parent
        self.records = Path(job.records)
        self.paces: dict[int, RankPace] = {}
        self.times: dict[int, dict[int, ThreadTimes]] = {}
        self.parent_stopped = 0.0
        self.looked = time.monotonic()

    def look(self) -> bool:
        """Look at all processes once. Returns whether they hung and were killed."""
        elapsed = time.monotonic() - self.looked
        self.looked += elapsed
        # Of a machine that slept the time between two looks shows nothing; a watcher that waited a little is no reason.
        wall = min(elapsed, LATE_LOOKS * self.job.limits.look)
        beats = {rank: beat for rank, beat in read_beats(self.records).items() if run_state(beat.pid)}
        self.paces = {rank: pace for rank, pace in self.paces.items() if rank in beats}
        used = {rank: self._used(rank, beat, wall) for rank, beat in beats.items()}
        counted = wall - max((waited for _, waited in used.values()), default=0.0)
        if any(run_state(beat.pid) == "t" for beat in beats.values()):
            counted = 0.0  # a debugger holds it
        for rank, beat in beats.items():
            pace = self.paces.setdefault(rank, RankPace(beat))
            pace.look(beat, wall, counted, used[rank][0] > BUSY_SHARE * wall, run_state(beat.pid) == "T")
        self.parent_stopped = self.parent_stopped + wall if run_state(self.parent) == "T" else 0.0
        if self.parent_stopped < self.job.limits.still and not hangs([*self.paces.values()], self.job.limits):
            return False
        return self._end(beats)

    def _used(self, rank: int, beat: Beat, wall: float) -> tuple[float, float]:
        """The seconds that a rank's threads have run since the last look, and that they have waited for a processor."""
        after = threads_below(beat.pid)
        before, self.times[rank] = self.times.get(rank, after), after
        if after:
            # Threads that wait for Python's lock count while it goes round: one that has it may wait for a processor.
            has_pulse = rank not in self.paces or self.paces[rank].has_pulse
            return time_between(before, after, wall, computing_alone=not has_pulse)
        # A kernel that does not count lets nobody be quiet, and the load tells how much of its time a process has had.
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        return wall, wall * (1 - 1 / load) if load > 1 else 0.0

    def _end(self, beats: dict[int, Beat]) -> bool:
        """Have the stacks written, report and kill; False if a process has moved meanwhile, so that none hangs."""
        standings = self._standings(beats)
        stopped = self.parent_stopped > 0 or any(one.stopped for one in standings)
        if not stopped and any(_moved(beats[rank], beat) for rank, beat in read_beats(self.records).items()):
            for rank in beats:
                os.truncate(stacks_of(self.records, rank), 0)
            return False
        place = self._keep_stacks(beats)
        own = any(beat.pid == self.parent for beat in beats.values())
        if self.parent_stopped > 0 and not own:
            line = f"process {self.parent}, which started the ranks, is stopped, as by SIGSTOP; all were killed: "
            line += f"run the same command to resume (stacks are in {place})"
        else:
            line = explanation(standings, self.job.ranks, place)
        report = {"line": line, "ranks": [one.as_json() for one in standings], "stacks": place}
        Path(self.job.report).write_text(json.dumps(report, indent=2), encoding="utf-8")
        ends_parent = own or self.parent_stopped > 0
        if ends_parent:  # else the parent says it
            print(f"{self.job.name}: {line}", file=sys.stderr, flush=True)
        for pid in [*(beat.pid for beat in beats.values()), *([self.parent] if ends_parent else [])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    def _standings(self, beats: dict[int, Beat]) -> list[Standing]:
        """Have every process write its stacks, and say how each stands.

        A process that is stopped writes nothing before it goes on, which it may do now: it will be killed.
        """
        for rank, beat in beats.items():
            with suppress(ProcessLookupError):
                os.kill(beat.pid, STACKS_SIGNAL)
                if self.paces[rank].stopped > 0:
                    os.kill(beat.pid, signal.SIGCONT)
        until = time.monotonic() + STACKS_SECONDS
        while time.monotonic() < until and not all(self._stacks(rank) for rank in beats):
            time.sleep(0.05)
        return [self.paces[rank].standing_at(rank, place_in(self._stacks(rank))) for rank in sorted(beats)]

    def _stacks(self, rank: int) -> str:
        try:
            return stacks_of(self.records, rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _keep_stacks(self, beats: dict[int, Beat]) -> str:
        """Copy the stacks to where a person finds them; returns the folder."""
        folder = Path(self.job.stacks) / time.strftime("%Y%m%dT%H%M%S")
        folder.mkdir(parents=True, exist_ok=True)
        for rank in beats:
            (folder / f"rank-{rank}.txt").write_text(self._stacks(rank), encoding="utf-8")
        return folder.as_posix()


def _moved(before: Beat, after: Beat) -> bool:
    return (before.loop, before.steps) != (after.loop, after.steps)


def place_in(stacks: str) -> str:
    """The innermost line of the main thread, which faulthandler writes last; empty if there is none."""
    frame = FRAME.search(stacks.rpartition("(most recent call first):")[2])
    if frame is None:
        return ""
    file, line, function = frame.groups()
    short = file.rpartition("/site-packages/")[2].removeprefix(f"{PROJECT}/")
    return f"{short}:{line} in {function}"


def main(arguments: Sequence[str]) -> None:
    """Watch until the stage has ended or hangs."""
    job, parent = read_argument(arguments[0]), os.getppid()
    try:
        ended = os.pidfd_open(parent)
        watcher = Watcher(job, parent)
        while os.getppid() == parent and not select.select([ended], [], [], job.limits.look)[0]:
            if watcher.look():
                break
    except ProcessLookupError:
        pass  # the parent ended before it could be watched
    if os.getppid() != parent or run_state(parent) == "":
        shutil.rmtree(job.records, ignore_errors=True)  # a parent that was killed leaves them


if __name__ == "__main__":
    main(sys.argv[1:])
