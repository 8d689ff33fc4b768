"""The loop that starts a sweep's points and follows each to its end, wherever the points run."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from flows.sweeps.place_interface import Place, PointState
from flows.sweeps.point_folder import is_prepared, outcome, prepare, remove_outcome
from flows.sweeps.points import Point
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.paths import STATE

POLL_SECONDS = 1.0
MAX_STARTS = 2
"""The most times that a point is started if each of its runs is lost."""

OnChange = Callable[[Point, PointState], None]


@dataclass
class _Run:
    point: Point
    state: PointState
    handle: str | None = None
    starts: int = 0

    @property
    def over(self) -> bool:
        return self.state.phase in ("done", "failed")


def is_done(point: Point) -> bool:
    """Whether the outcome in the point's folder says that the point is done."""
    return (ended := outcome(point.folder)) is not None and ended.done


def prepare_folders(project: Path, points: Sequence[Point], place: Place) -> None:
    """Write the folders of all points that are neither done nor under way.

    All folders are written before the first point starts. The last one may start days later, and an edit of the code in
    the meantime must not reach it.
    """
    for point in points:
        with _starting(project):
            if not is_done(point) and not (is_prepared(point.folder) and place.find_run(point)):
                prepare(project, point)


def follow(project: Path, points: Sequence[Point], place: Place, on_change: OnChange) -> dict[str, PointState]:
    """Run the points that are not done. Returns the final state of each by its key: done, or failed with a reason.

    A folder that has been written stays as it is. `on_change` is called for every change of a point's state. If an
    exception ends this early, such as Ctrl-C or the cancellation of the flow, the runs are cancelled.
    """
    runs = [_Run(point, PointState("done" if is_done(point) else "queued")) for point in points]
    try:
        while under_way := [run for run in runs if not run.over]:
            for run in under_way:
                before = run.state
                _step(project, run, place)
                if run.state != before:
                    on_change(run.point, run.state)
            time.sleep(POLL_SECONDS if any(not run.over for run in runs) else 0)
    except BaseException:
        place.cancel([run.handle for run in runs if run.handle is not None and not run.over])
        raise
    return {run.point.key: run.state for run in runs}


def _step(project: Path, run: _Run, place: Place) -> None:
    """Start the run if it has not been started, and update its state. A run that is lost is started again."""
    try:
        if run.handle is None:
            run.handle = _start(project, run.point, place)
            run.starts += run.handle is not None
        if run.handle is not None:
            run.state = place.state(run.point, run.handle)
        elif is_done(run.point):
            run.state = PointState("done")
    except UserError as error:
        run.state = PointState("failed", str(error))
    if run.state.phase == "lost":
        run.handle, reason = None, run.state.reason
        if run.starts < MAX_STARTS:
            run.state = PointState("queued", f"lost: {reason}")
        else:
            run.state = PointState("failed", f"lost {MAX_STARTS} times: {reason}")


def _start(project: Path, point: Point, place: Place) -> str | None:
    """The handle of the run that is under way, or of a new run. None if the point is done or the place has no room.

    A lock makes the search for a run and the start of a new one a single step. If two sweeps have a point in common,
    the second sweep finds the run of the first.
    """
    with _starting(project):
        if (handle := place.find_run(point)) is not None:
            return handle
        if is_done(point) or not place.has_room():
            return None
        if not is_prepared(point.folder):
            prepare(project, point)
        remove_outcome(point)
        return place.submit(point)


def _starting(project: Path) -> AbstractContextManager[None]:
    return exclusive_lock(
        project / STATE / "sweeps" / "starting.lock", "a point is being started", wait_seconds=math.inf
    )
