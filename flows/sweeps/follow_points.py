"""Following a sweep's points from their start to their end, wherever they run."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from flows.sweeps.place import Place, State
from flows.sweeps.point_folder import forget, ordered, outcome, prepare
from flows.sweeps.points import Point
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.paths import STATE

POLL_SECONDS = 1.0
STARTS = 2
"""How often a point is started that is lost each time."""

Told = Callable[[Point, State], None]


@dataclass
class _Run:
    point: Point
    state: State
    handle: str | None = None
    starts: int = 0

    @property
    def over(self) -> bool:
        return self.state.phase in ("done", "failed")


def finished(point: Point) -> bool:
    """Whether the point is done: its outcome says so."""
    return (ended := outcome(point.folder)) is not None and ended.done


def write_folders(project: Path, points: Sequence[Point], place: Place) -> None:
    """Write the folders of those points that are neither done nor under way.

    All before the first begins: it may take days until the last does, and the code is edited meanwhile.
    """
    for point in points:
        with _starting(project):
            if not finished(point) and not (ordered(point.folder) and place.find(point)):
                prepare(project, point)


def follow(project: Path, points: Sequence[Point], place: Place, told: Told) -> dict[str, State]:
    """Run those of the points that are not done, and return where each ended, by key: done, or failed with its reason.

    A folder that has been written stays as it is. `told` hears of every change. However this ends early, by Ctrl-C or a
    cancelled flow, its runs are cancelled.
    """
    runs = [_Run(point, State("done" if finished(point) else "queued")) for point in points]
    try:
        while under_way := [run for run in runs if not run.over]:
            for run in under_way:
                before = run.state
                _step(project, run, place)
                if run.state != before:
                    told(run.point, run.state)
            time.sleep(POLL_SECONDS if any(not run.over for run in runs) else 0)
    except BaseException:
        place.cancel([run.handle for run in runs if run.handle is not None and not run.over])
        raise
    return {run.point.key: run.state for run in runs}


def _step(project: Path, run: _Run, place: Place) -> None:
    """Start the run, or see where it stands; one that is lost is started again."""
    try:
        if run.handle is None:
            run.handle = _start(project, run.point, place)
            run.starts += run.handle is not None
        if run.handle is not None:
            run.state = place.state(run.point, run.handle)
        elif finished(run.point):
            run.state = State("done")
    except UserError as error:
        run.state = State("failed", str(error))
    if run.state.phase == "lost":
        run.handle, reason = None, run.state.reason
        again = run.starts < STARTS
        run.state = State("queued", f"lost: {reason}") if again else State("failed", f"lost {STARTS} times: {reason}")


def _start(project: Path, point: Point, place: Place) -> str | None:
    """The handle of the run that is under way, or of a new one; None if it is done or there is no room.

    To look and then to start is one step: of two sweeps with a point in common, the second one finds the first one's.
    """
    with _starting(project):
        if (handle := place.find(point)) is not None:
            return handle
        if finished(point) or not place.room():
            return None
        if not ordered(point.folder):
            prepare(project, point)
        forget(point)
        return place.submit(point)


def _starting(project: Path) -> AbstractContextManager[None]:
    return exclusive_lock(
        project / STATE / "sweeps" / "starting.lock", "a point is being started", wait_seconds=math.inf
    )
