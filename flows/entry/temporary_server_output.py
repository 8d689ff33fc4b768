"""The last lines that Prefect's temporary server has printed. They tell why the server ended, or failed at a request.

They stay off the terminal, where a server that cannot start fills hundreds of lines. They are kept in memory, since a
disk that is full is one of the reasons.
"""

import threading
import time
from collections import deque
from typing import IO

from tasks.system.error_lines import reason_in_output

KEPT_LINES = 2000
LAST_WORDS_SECONDS = 5.0
LOOK_SECONDS = 0.5

_lines: deque[str] = deque(maxlen=KEPT_LINES)


def keep(pipe: IO[str]) -> threading.Thread:
    """Keep the lines of a new server from now on, in a thread which is returned. It ends with the server."""
    _lines.clear()
    thread = threading.Thread(target=_read, args=(pipe,), daemon=True, name="temporary server's output")
    thread.start()
    return thread


def _read(pipe: IO[str]) -> None:
    with pipe:
        for line in pipe:
            _lines.append(line.rstrip())


def reason(database: str) -> str:
    """Why the server has failed, as its last lines tell. An empty text if it has printed nothing."""
    return reason_in_output(list(_lines), database)


def await_last_words() -> None:
    """Wait for what the server prints about a request that it has failed at, LAST_WORDS_SECONDS at most.

    It answers before it prints. Its words are over when nothing new comes between two looks.
    """
    until, before = time.monotonic() + LAST_WORDS_SECONDS, 0
    while time.monotonic() < until and (not _lines or len(_lines) != before):
        before = len(_lines)
        time.sleep(LOOK_SECONDS)


def port_was_taken() -> bool:
    """Whether the server has ended because another program listens on its port."""
    return any("address already in use" in line for line in list(_lines))
