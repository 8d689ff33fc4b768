"""Signs of life: what a point writes in its folder, or on its flow run, and a sweep on another host listens to.

Clocks of two hosts differ, so that the text of a beat means nothing but that it is another one; how long there was none
is measured by the listener's own clock.
"""

import time
from pathlib import Path

from flows.sweeps.point_folder import POINT_RECORDS

HEARTBEAT_FILE = POINT_RECORDS / "heart"
BEAT_LABEL = "sana15.beat"
"""Of a flow run, where there is no folder to beat in."""
BEATS_PER_LIMIT = 10
"""How many beats are given in the time after which silence means death."""


def write_beat(folder: Path) -> None:
    """Give a sign of life. Raises OSError if the folder is out of reach."""
    (folder / HEARTBEAT_FILE).write_text(str(time.time_ns()), encoding="utf-8")


def read_beat(folder: Path) -> str:
    """The last beat; nothing where there was none, or one is being written."""
    try:
        # a file that is opened anew is looked up on the server, whatever the host has in its cache
        return (folder / HEARTBEAT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Silence:
    """How long each of several runs has given no new sign."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def forgive(self, seconds: float) -> None:
        """Take these seconds, in which nobody could be read_beat, off every silence."""
        self._last = {run: (sign, since + seconds) for run, (sign, since) in self._last.items()}

    def seconds(self, run: str, sign: str) -> float:
        """Seconds since `sign` of this run was first read_beat."""
        now = time.monotonic()
        known, since = self._last.get(run, (None, now))
        if known != sign:
            self._last[run] = sign, now
            return 0.0
        return now - since
