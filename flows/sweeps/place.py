"""Where points run: what a sweep asks of a place, whichever it is."""

from dataclasses import dataclass
from typing import Literal, Protocol

from flows.sweeps.points import Point

Phase = Literal["queued", "running", "done", "failed", "lost"]

QUERY_INTERVAL_SECONDS = 1.0
"""How often a queue or a server is asked at most, by one question for all points."""
SHARED_FOLDER_DELAY_SECONDS = 60.0
"""How long a shared folder may take to show here what a run that is completed has written there."""


@dataclass(frozen=True)
class PointState:
    """Where a point stands. A `lost` one is gone without an outcome, by no fault of its own that is known."""

    phase: Phase
    reason: str = ""


class Place(Protocol):
    """Runs points. A handle names a run that was started: a process, a job."""

    def find_run(self, point: Point) -> str | None:
        """The handle of a run of this point that is under way or waits, whoever started it."""

    def has_room(self) -> bool:
        """Whether one more can be started now."""

    def submit(self, point: Point) -> str | None:
        """Start a point whose folder is prepared; None if the room went to another sweep in the meantime."""

    def state(self, point: Point, handle: str) -> PointState:
        """Where the run stands."""

    def cancel(self, handles: list[str]) -> None:
        """Stop these runs, at a checkpoint where they are at one; returns when they are told or gone."""
