"""Ctrl-C and TERM during training: the handler only notes them, and the training loop acts between two steps."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.computing import ranks

MEET_SECONDS = 2.0
"""Ranks that compute together ask each other for signals about so often."""


class Interrupts:
    """Holds the number of the signal that has come, or None."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def note(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler. One signal is enough: the loop stops after the step under way."""
        self.signum = signum


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Hold back SIGINT and SIGTERM in the `with` block, which finds the signal in `.signum` and must act on it."""
    interrupts = Interrupts()
    previous = {number: signal.signal(number, interrupts.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class AgreedStop:
    """Lets all ranks stop after the same step, though a signal may reach only one of them.

    One process acts on a signal after the step in which it came. Several ranks ask each other, which costs a gather:
    first after one step, and then as often as fits their speed. They agree on the number of steps until the next time,
    which is what the slowest of them makes in `MEET_SECONDS`, but at least one and at most `most_steps`.
    """

    def __init__(self, interrupts: Interrupts, most_steps: int) -> None:
        self.interrupts, self.most_steps = interrupts, most_steps
        self.steps = self.left = 1
        self.met = time.monotonic()

    def signum(self) -> int | None:
        """The signal for which to stop now, or None. All ranks must call this after every step."""
        if ranks.world_size() == 1:
            return self.interrupts.signum
        self.left -= 1
        if self.left:
            return None
        pace = (time.monotonic() - self.met) / self.steps
        answers = ranks.gather([self.interrupts.signum or 0, pace])
        slowest = max(seconds for _, seconds in answers)
        self.steps = self.left = round(min(max(MEET_SECONDS / slowest, 1), self.most_steps))
        self.met = time.monotonic()
        return max(number for number, _ in answers) or None
