"""What a sweep needs of a place where points run: this machine, Slurm, or a work pool of Prefect."""

from dataclasses import dataclass
from typing import Literal, Protocol

from flows.sweeps.points import Point

Phase = Literal["queued", "running", "done", "failed", "lost"]

QUERY_INTERVAL_SECONDS = 1.0
"""The least time between two queries of a queue or server. One query covers all points."""
SHARED_FOLDER_DELAY_SECONDS = 60.0
"""How long a shared folder may take to show on this host the files that a completed run has written on another."""


@dataclass(frozen=True)
class PointState:
    """The state of a point. A `lost` point ended without an outcome, and no fault of its own is known."""

    phase: Phase
    reason: str = ""


class Place(Protocol):
    """Runs points. A handle names a run that was started: a process, a job of Slurm, or a flow run."""

    def find_run(self, point: Point) -> str | None:
        """The handle of a run of this point that waits or runs, whichever sweep started it. None if there is none."""

    def has_room(self) -> bool:
        """Whether one more point can be started now."""

    def submit(self, point: Point) -> str | None:
        """Start a point whose folder is prepared. Returns None if another sweep was first to take the room for it."""

    def state(self, point: Point, handle: str) -> PointState:
        """The state of the point's run."""

    def cancel(self, handles: list[str]) -> None:
        """Stop these runs. Training saves a checkpoint first. Returns when the runs are told to stop, or are gone."""
