"""How a flow speaks on the terminal that it was started from, and how it ends there."""

import logging
import signal
import sys
from collections.abc import Callable

import httpx

from flows.entry.password import refusal, refuse_server_of_settings
from tasks.system.errors import UserError
from tasks.system.processes import BAD_INPUT, complain

LOGGER = "sana15"
FAILED, STOPPED = 1, 130


class FlowFailed(Exception):
    """Not all that the flow was to do is done; the message says what failed and why."""


def in_terminal(run: Callable[[], object]) -> int:
    """Run a flow from the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    speak_plainly()
    exit_on_term()
    try:
        refuse_server_of_settings()
        run()
    except UserError as error:
        return complain(error, BAD_INPUT)
    except FlowFailed as error:
        return complain(error, FAILED)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        return complain(refusal(str(error.request.url.copy_with(path="/api", query=None))), BAD_INPUT)
    except KeyboardInterrupt:
        return complain("stopped; run the same command to go on", STOPPED)
    return 0


def speak_plainly() -> None:
    """Leave the stages' lines on the terminal, and others' warnings: Prefect's remarks on its runs are in its UI."""

    def wanted(record: logging.LogRecord) -> bool:
        prefects = record.name.split(".")[0] == "prefect"
        return record.name.endswith(f".{LOGGER}") or (record.levelno >= logging.WARNING and not prefects)

    for handler in logging.getLogger().handlers:
        handler.addFilter(wanted)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


def exit_on_term() -> None:
    """Prefect hands TERM on when the flow has ended its children; the default action would leave its server behind."""
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
