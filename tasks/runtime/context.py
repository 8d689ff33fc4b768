"""The context that a stage gets, the metrics that it returns, and the exception that it raises when it is stopped."""

import signal
from dataclasses import dataclass
from pathlib import Path

from tasks.params.experiment_params import Params
from tasks.tracking.tracker import Tracker

Metrics = dict[str, float]


class Interrupted(Exception):
    """Raised after a signal, at a point where all that is needed to resume is on disk."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command to resume")
        self.signum = signum


@dataclass(frozen=True)
class Context:
    """All that a stage gets to work with.

    `out` is an empty folder that becomes the stage's output. `state` is a folder that a killed run leaves to the next
    run with the same inputs. `device` is `cpu` or `cuda`, and `threads` is the number of CPU threads.
    """

    name: str
    params: Params
    out: Path
    state: Path
    tracker: Tracker
    device: str
    threads: int
