"""Ctrl-C and TERM during training: the handler only notes them, and the training loop acts between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
