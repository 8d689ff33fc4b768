"""The rules by which a process counts as hanging, and which rank of several is the cause."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.system.heartbeat import OUTSIDE, PAUSED, Beat

KNOWN_STEPS = 20
"""Steps after which a loop's pace is known. The first ones compile, and fill caches.

Training reads its numbers every ten steps, and on a GPU waits for all ten there. Among twenty are two such waits, which
is why the limit follows from the longest but one.
"""
PULSE_LOST_SECONDS = 10.0
"""A thread that counts seconds, and has not for so long, gets no interpreter lock."""
WAITS_FOR_OTHERS = re.compile(r"torch/distributed/|tasks/computing/ranks\.py|_engine_run_backward")
"""Places in code where a rank waits for others; the backward pass ends with a sum over ranks."""


@dataclass(frozen=True)
class Limits:
    """When a process hangs, in seconds.

    `still` is the least time without a step. The limit is longer where steps are: `multiple` times the longest but one
    of the last `KNOWN_STEPS`. Where no pace is known, a process hangs if nothing happens and it uses no processor for
    `quiet`. `look` is the time between two looks.
    """

    still: float = 45.0
    multiple: float = 2.5
    quiet: float = 1800.0
    look: float = 1.0


@dataclass(frozen=True)
class Standing:
    """How a rank stood when it was found to hang.

    `seconds` is the time since it last moved. `usual` is the length of its steps in seconds, None if it is not known.
    `place` is the innermost line of Python of its main thread.
    """

    rank: int
    seconds: float
    usual: float | None
    stopped: bool
    has_pulse: bool
    loop: int
    steps: int
    place: str

    def as_json(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


class RankPace:
    """What a watcher knows of one rank: how long its steps take, and for how long it has stood still.

    Times without a step count on a clock of its own, which stands still while the rank waits for a processor. So a busy
    machine makes nobody hang. The length of steps is measured on the wall's clock.
    """

    def __init__(self, beat: Beat) -> None:
        self.beat = beat
        self.seconds = self.standing = self.quiet = self.stopped = self.mute = 0.0
        self._steps: dict[int, deque[float]] = {}

    def look(self, beat: Beat, wall: float, counted: float, busy: bool, stopped: bool) -> None:
        """Take in a look, `wall` seconds after the one before, of which `counted` count.

        `counted` is negative if a wait for a processor has ended that began before the last look. `busy` says whether
        the rank used a processor in this time.
        """
        before, self.beat = self.beat, beat
        self.seconds, self.standing = self.seconds + wall, max(self.standing + counted, 0.0)
        moved = (beat.loop, beat.steps) != (before.loop, before.steps)
        if moved:
            made = beat.steps - before.steps
            if beat.loop == before.loop and beat.loop > 0 and made > 0:
                steps = self._steps.setdefault(beat.loop, deque(maxlen=KNOWN_STEPS))
                steps.extend([self.seconds / made] * min(made, KNOWN_STEPS))
            self.seconds = self.standing = 0.0
        self.quiet = 0.0 if moved or busy else max(self.quiet + counted, 0.0)
        self.stopped = self.stopped + wall if stopped else 0.0
        self.mute = 0.0 if beat.pulse != before.pulse else self.mute + wall

    @property
    def has_pulse(self) -> bool:
        """Whether the thread that counts seconds has counted lately."""
        return self.mute < PULSE_LOST_SECONDS

    def usual(self) -> float | None:
        """The longest but one of the last steps of this loop, in seconds; None before its pace is known.

        Steps that were made before the first look took no time to speak of.
        """
        if self.beat.loop <= 0 or self.beat.steps < KNOWN_STEPS:
            return None
        return sorted([0.0, 0.0, *self._steps.get(self.beat.loop, ())])[-2]

    def late(self, limits: Limits) -> bool:
        """Whether the step under way has taken too long."""
        usual = self.usual()
        return usual is not None and self.standing >= max(limits.still, limits.multiple * usual)

    def waits(self, limits: Limits) -> bool:
        """Whether it does nothing outside of loops, as a rank does that waits for the others behind its own loop."""
        return self.beat.loop == OUTSIDE and self.quiet >= limits.still

    def dead(self, limits: Limits) -> bool:
        """Whether nothing has happened for so long that no step's pace needs to be known."""
        return self.quiet >= limits.quiet

    def standing_at(self, rank: int, place: str) -> Standing:
        """How it stands now, with the place of its main thread."""
        loop, steps = self.beat.loop, self.beat.steps
        return Standing(rank, self.seconds, self.usual(), self.stopped > 0, self.has_pulse, loop, steps, place)


def hangs(ranks: Sequence[RankPace], limits: Limits) -> bool:
    """Whether a stage hangs, by all of its ranks that are watched together.

    One rank that is stopped is enough. One whose step takes too long is, if all others are late or wait too: else it
    may wait for a rank that is evaluating.
    """
    if any(one.stopped >= limits.still for one in ranks):
        return True
    if any(one.late(limits) for one in ranks) and all(one.late(limits) or one.waits(limits) for one in ranks):
        return True
    return bool(ranks) and all(one.dead(limits) for one in ranks)


def causes(standings: Sequence[Standing]) -> list[Standing]:
    """The ranks that stand still by themselves, while the others wait for them. It is empty if none stands apart."""
    if len(standings) == 1:
        return list(standings)
    if stopped := [one for one in standings if one.stopped]:
        return stopped
    for group in ([one for one in standings if not one.has_pulse], _behind(standings), _not_waiting(standings)):
        if 0 < len(group) < len(standings):
            return group
    return []


def _behind(standings: Sequence[Standing]) -> list[Standing]:
    """The ranks with the fewest steps, if all are in the same loop."""
    if len({one.loop for one in standings}) > 1 or standings[0].loop in (OUTSIDE, PAUSED):
        return []
    fewest = min(one.steps for one in standings)
    return [one for one in standings if one.steps == fewest]


def _not_waiting(standings: Sequence[Standing]) -> list[Standing]:
    return [one for one in standings if one.place and not WAITS_FOR_OTHERS.search(one.place)]


def explanation(standings: Sequence[Standing], count: int, stacks: str) -> str:
    """One line that says who stands still, for how long, and why."""
    found = causes(standings)
    longest = max(one.seconds for one in standings)
    usual = [one.usual for one in standings if one.usual]
    step = f" (one took {max(usual):.2g} s)" if usual else ""
    since = f"no step for {longest:.0f} s{step}"
    after = f"stacks are in {stacks}: run the same command to resume"
    if count == 1:
        return f"{since}: {_why(found[0])}; the process was killed; {after}"
    after = f"all ranks were killed; {after}"
    if not found:
        places = "; ".join(f"rank {one.rank} {_why(one)}" for one in standings)
        return f"{since}, and no rank stands apart: {places}; {after}"
    named = "; ".join(f"rank {one.rank} of {count} stands still: {_why(one)}" for one in found)
    return f"{named}; {since}; {after}"


def _why(one: Standing) -> str:
    if one.stopped:
        return "it is stopped, as by SIGSTOP"
    if not one.has_pulse:
        return f"a call holds Python's lock (GIL) at {one.place}" if one.place else "a call holds Python's lock (GIL)"
    return f"it is at {one.place}" if one.place else "its place is not known"
