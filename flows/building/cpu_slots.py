"""Which stages may compute now: one main stage on all CPU threads, or several branch stages on a share each."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class CpuSlots:
    """`count` slots. A branch stage takes one of them and a main stage takes all.

    Stages get their slots in the order in which they ask. Without that order, branch stages could overtake a main stage
    again and again, and it would wait for ever.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    @contextmanager
    def take(self, *, branch: bool) -> Iterator[None]:
        """Hold one slot, or all of them, for the block."""
        slots, ticket = 1 if branch else self._count, object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= slots)
            self._waiting.popleft()
            self._free -= slots
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += slots
                self._changed.notify_all()
