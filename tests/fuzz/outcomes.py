"""What may come of reading a damaged file: a result, or a refusal in one line; in little memory and without a hang."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from tasks.system.errors import UserError

Result = TypeVar("Result")
MOST_BYTES = 2**30
"""Address space that one reading may add to the process."""
MOST_SECONDS = 30
"""CPU seconds of one reading. A reading takes some milliseconds, so even a busy machine reaches it by a hang alone."""


class Hangs(BaseException):
    """A reading has taken `MOST_SECONDS`. It is no Exception, so that no reader takes it for damage of its file."""


def outcome(read: Callable[[], Result], refusal: type[Exception] = UserError) -> Result | None:
    """The result of `read`, or None if it raises a `refusal` of one line. All else that it raises fails the test."""
    try:
        with bounded():
            return read()
    except refusal as error:
        message = str(error)
        assert message and message.splitlines() == [message], f"no single line: {message[:500]!r}"
        message.encode()  # a terminal or a log could not show it otherwise
        return None
    except Hangs:
        raise AssertionError(f"it hangs: it has taken {MOST_SECONDS} seconds of CPU time") from None


@contextmanager
def bounded() -> Iterator[None]:
    """Limits memory and CPU time of what is done in the `with` block: MemoryError or Hangs comes out of it."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, previous)


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise Hangs
