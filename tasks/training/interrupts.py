"""Ctrl-C and TERM during training: noted at once, acted on between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """The signal that has come, if any."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def note(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler. A second signal of the same kind is not needed: the loop stops after the step under way."""
        self.signum = signum


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Hold back SIGINT and SIGTERM for the block; they are in `.signum` for the block to act on."""
    interrupts = Interrupts()
    previous = {number: signal.signal(number, interrupts.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
