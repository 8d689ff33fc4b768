"""A point as a flow run in a work pool: what its worker starts.

The pipeline itself runs in a process of its own, with the code and in the folder of the point: edits of the project do
not reach it.
"""

import os
import subprocess
import time
from pathlib import Path

from prefect import State, flow
from prefect.states import Crashed

from flows.sweeps.heart import BEATS, beat
from flows.sweeps.process import PointProcess, end, ending, start
from flows.sweeps.running import environment, outcome

FLOW = "sana15-point"
LOOK_SECONDS = 0.5


class PointFailed(Exception):
    """The point failed; the message is its reason."""


@flow(name=FLOW)
def run_point(folder: str, attempt: int, lost_seconds: int) -> State | None:
    """Run the point that a sweep has prepared in `folder`, and beat there for as long as it runs.

    A run that has lost its worker could not be cancelled any more, and one that could not beat for half of
    `lost_seconds` may soon be taken for dead: either ends itself, to be run again from its last checkpoint.

    Raises PointFailed. `attempt` is there to be seen.
    """
    here, worker = Path(folder), os.getppid()
    beat(here)
    process = start(here, environment(here, elsewhere=False))
    try:
        stopped = _watch(process, here, worker, lost_seconds)
    finally:
        if process.poll() is None:
            end([process])
    if (ended := outcome(here)) is None:
        if stopped is not None:
            return Crashed(message=stopped)
        raise PointFailed(ending(process, here))
    if not ended.done:
        raise PointFailed(ended.reason)
    return None


def _watch(process: PointProcess, folder: Path, worker: int, lost_seconds: int) -> str | None:
    """Wait for the end of the process; or return why not to wait any longer."""
    last = time.monotonic()
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return None
        except subprocess.TimeoutExpired:
            pass
        if os.getppid() != worker:
            return "its worker is gone"
        silent = time.monotonic() - last
        if silent > lost_seconds / 2:
            return f"it could not reach its folder for {silent:.0f} seconds"
        if silent > lost_seconds / BEATS:
            try:
                beat(folder)
                last = time.monotonic()
            except OSError:
                continue
