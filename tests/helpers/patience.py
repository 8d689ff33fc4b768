"""How long tests wait for others: limits that guard against hanging, and measure nothing.

They fit a machine four times slower than an ordinary one, with other work beside the tests.
"""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 600
"""For one process that starts, ends or answers."""
PIPELINE_SECONDS = 3000
"""For a whole pipeline, or a sweep of several."""


def wait_for(true: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return when `true()` is; an OSError means not yet. Fails after `seconds` with `what` was awaited."""
    until = time.monotonic() + seconds
    while not holds(true):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.05)


def holds(true: Callable[[], object]) -> bool:
    """Whether `true()` is; it is not where it raises an OSError, as a server that does not listen yet makes it."""
    try:
        return bool(true())
    except OSError:
        return False
