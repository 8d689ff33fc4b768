"""What a flow prints on the terminal that started it, and with which exit code it ends."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx

from flows.entry import temporary_server_output
from flows.entry.named_server import refuse_silent_server
from flows.entry.password import API_VARIABLE, refuse_server_in_settings_file, wrong_password_message
from tasks.system.error_lines import blames_a_server, line_of
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, FAILED, complain
from tasks.system.paths import refuse_question_mark

LOGGER = "sana15"
STOPPED = 130


class FlowFailed(Exception):
    """The flow has not done everything that it was asked to do. The message says what failed and why."""


def run_in_terminal(run: Callable[[], object]) -> int:
    """Run a flow from the command line and return its exit code: 0 done, 1 failed, 2 bad input, 130 stopped.

    What the system or a library throws ends it with one line too. A fault of the program is raised.
    """
    show_only_stage_lines()
    exit_on_term()
    try:
        refuse_question_mark(Path.cwd())
        refuse_server_in_settings_file()
        refuse_silent_server()
        run()
    except UserError as error:
        return complain(error, BAD_INPUT)
    except FlowFailed as error:
        return complain(error, FAILED)
    except KeyboardInterrupt:
        # another Ctrl-C would interrupt what Prefect does at the end of the process, and leave its server behind
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return complain("stopped; run the same command to go on", STOPPED)
    except Exception as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
            server = str(error.request.url.copy_with(path="/api", query=None))
            return complain(wrong_password_message(server), BAD_INPUT)
        if (line := reason_of(error)) is None:
            raise
        return complain(line, FAILED)
    return 0


def reason_of(error: Exception) -> str | None:
    """Why a flow has failed that ended with this exception, in one line. None if the exception is not known.

    If Prefect's temporary server has failed, its own last words tell more than the client's.
    """
    if not os.environ.get(API_VARIABLE) and blames_a_server(error):
        temporary_server_output.await_last_words()
        if said := temporary_server_output.reason("of Prefect (python -m flows.doctor says where it lies)"):
            return f"Prefect's temporary server has failed: {said}"
    return line_of(error)


def show_only_stage_lines() -> None:
    """Show on the terminal the lines of the stages, and the warnings of all libraries but Prefect.

    Prefect's own lines about its runs are left out, since its UI shows them.
    """

    # Found without an import: Prefect must find its environment set when it is imported.
    prefects_code = Path(find_spec("prefect").origin).parent

    def wanted(record: logging.LogRecord) -> bool:
        # Workers of Prefect that send its events name their loggers after their classes, so the file tells it.
        prefects = Path(record.pathname).is_relative_to(prefects_code)
        return record.name.endswith(f".{LOGGER}") or (record.levelno >= logging.WARNING and not prefects)

    for handler in logging.getLogger().handlers:
        handler.addFilter(wanted)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


def keep_server_from_interrupts() -> None:
    """Make Prefect start its temporary server, if it needs one, where Ctrl-C in the terminal does not reach it.

    Call this before the first flow of the process begins. It imports Prefect's server, as a flow without a server does.
    """
    if not os.environ.get(API_VARIABLE):
        from flows.entry.temporary_server import ServerInOwnSession

        ServerInOwnSession()  # Prefect's clients share the first server that is made in a process


def exit_on_term() -> None:
    """Make TERM end this process by SystemExit, so that `finally` blocks run.

    Prefect ends the flow's children on TERM, then restores this handler and sends TERM again. The system's default
    action would end the process at once and leave Prefect's temporary server behind.
    """
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
