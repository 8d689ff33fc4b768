"""Who computes now: one main stage on all threads, or several branch stages on their share of them."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class CpuSlots:
    """`count` places. A branch stage takes one, a main stage all of them, first come first served.

    The order keeps a main stage from waiting for ever behind branches that overtake it.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    @contextmanager
    def take(self, *, branch: bool) -> Iterator[None]:
        """Hold one place, or all, for the block."""
        places, ticket = 1 if branch else self._count, object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= places)
            self._waiting.popleft()
            self._free -= places
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += places
                self._changed.notify_all()
