"""What a stage gets, gives, and raises when it is stopped."""

import signal
from dataclasses import dataclass
from pathlib import Path

from tasks.params.experiment import Params
from tasks.tracking.tracker import Tracker

Metrics = dict[str, float]


class Interrupted(Exception):
    """Raised at a safe point after a signal; whatever is needed to resume is on disk."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command to resume")
        self.signum = signum


@dataclass(frozen=True)
class Context:
    """What a stage gets to work with.

    `out` is an empty folder that becomes the stage's output; `state` survives a killed run of the same inputs.
    """

    name: str
    params: Params
    out: Path
    state: Path
    tracker: Tracker
    device: str
    threads: int
