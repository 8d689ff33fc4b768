"""The heartbeat of a point: signs of life in its folder or on its flow run, which a sweep on another host reads.

The clocks of two hosts differ. So the text of a beat only shows that the beat is a new one, and the sweep measures by
its own clock how long there has been no new beat.
"""

import time
from pathlib import Path

from flows.sweeps.point_folder import POINT_RECORDS

HEARTBEAT_FILE = POINT_RECORDS / "heartbeat"
BEAT_LABEL = "sana15.beat"
"""The label of a flow run that holds the last beat, where the sweep and the point share no folder."""
BEATS_PER_LIMIT = 10
"""How many beats a point gives in the time after which its silence means that it is dead (`cluster.lost_seconds`)."""


def write_beat(folder: Path) -> None:
    """Write a sign of life into the point's folder. Raises OSError if the folder is out of reach."""
    (folder / HEARTBEAT_FILE).write_text(str(time.time_ns()), encoding="utf-8")


def read_beat(folder: Path) -> str:
    """The last beat in the point's folder. Empty if there was none, or if one is being written."""
    try:
        # NFS asks its server about a file whenever it is opened, so a beat is not hidden by this host's cache.
        return (folder / HEARTBEAT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Silence:
    """How long each of several runs has given no new sign of life."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def subtract(self, seconds: float) -> None:
        """Subtract these seconds from every silence. In this time the sweep could hear no run."""
        self._last = {run: (sign, since + seconds) for run, (sign, since) in self._last.items()}

    def seconds(self, run: str, sign: str) -> float:
        """Seconds since `sign` became the last sign of this run."""
        now = time.monotonic()
        known, since = self._last.get(run, (None, now))
        if known != sign:
            self._last[run] = sign, now
            return 0.0
        return now - since
