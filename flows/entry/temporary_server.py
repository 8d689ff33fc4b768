"""Prefect's temporary server, in a session of its own. Prefect starts it with a flow if no server is named.

Prefect would start it in the flow's session. Ctrl-C in a terminal goes to all processes of the session's foreground.
The server would then be gone before the flow, which has to report how it ended and would look for the server for
minutes. In a session of its own the server does not get Ctrl-C. Prefect ends it with the flow, and it ends itself if
the flow is killed.

Prefect would also start a server that ends at once again and again, without an end, and each would fill the terminal.
Here a server that cannot start is named in one line, with its reason.

Prefect's database needs no such care: each of its migrations is one transaction of SQLite, so a kill leaves no half of
one, and the next server goes on with the rest.

Importing this module imports Prefect's server, which takes seconds.
"""

import flows.entry.prefect_environment  # noqa: F401

import atexit
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from flows.entry import temporary_server_output
from flows.entry.project_servers import HOST
from tasks.system.error_lines import DOCTOR, without_password
from tasks.system.errors import UserError
from tasks.system.processes import PARENT_VARIABLE

PROGRAM = """
from tasks.system.processes import die_with_parent
die_with_parent()
from uvicorn.main import main
main()
"""
"""uvicorn's command line, in a process that ends with the flow."""
PROJECT = Path(__file__).parents[2]
ARGUMENTS = ("--factory", "prefect.server.api.server:create_app", "--log-level", "error", "--lifespan", "on")
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""The arguments and variables that Prefect gives its temporary server."""


PORTS_TO_TRY = 5
LOOK_SECONDS = 0.1
"""How often a server that starts is asked whether it is there."""


def database() -> str:
    """The path of Prefect's database, or its address without a password."""
    url = get_current_settings().server.database.connection_url
    return without_password(url.get_secret_value()).removeprefix("sqlite+aiosqlite:///") if url is not None else ""


class ServerInOwnSession(SubprocessASGIServer):
    """Prefect's temporary server, but for how its process is started and what is said when it cannot start."""

    _failed: UserError | None = None
    _output: threading.Thread | None = None

    def start(self, timeout: int | None = None) -> None:
        """Start the server if it is not up, and return when it answers, within `timeout` seconds.

        Prefect's clients call this. Raises UserError with the reason if the server ends, or if it does not answer in
        time. Then later calls raise the same error: Prefect's threads would otherwise start one server after another.
        """
        if self._failed is not None:
            raise self._failed
        if self.running:
            return
        self.running = True
        atexit.register(self.stop)
        seconds = timeout or get_current_settings().server.ephemeral.startup_timeout_seconds
        try:
            self._start(time.monotonic() + seconds)
        except UserError as error:
            self.running, self._failed = False, error
            raise
        except BaseException:
            self.running = False
            raise

    def _start(self, deadline: float) -> None:
        for _ in range(PORTS_TO_TRY):
            self.port = self.find_available_port()
            self.server_process = self._run_uvicorn_command()
            if self._answers(deadline):
                return
            if self._output is not None and self.server_process.poll() is not None:
                self._output.join()
            if not temporary_server_output.port_was_taken():
                break
        reason = temporary_server_output.reason(database()) or f"it did not say why; {DOCTOR}"
        raise UserError(f"Prefect's temporary server did not start: {reason}")

    def _answers(self, deadline: float) -> bool:
        """Wait until the server answers. False if it ends before, or if the time is over."""
        with httpx.Client(trust_env=False) as client:  # no proxy of the environment
            while self.server_process.poll() is None and time.monotonic() < deadline:
                try:
                    if client.get(f"{self.api_url}/health").status_code == httpx.codes.OK:
                        return True
                except httpx.TransportError:
                    pass
                time.sleep(LOOK_SECONDS)
        return False

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        where = ("--app-dir", str(prefect.__module_path__.parent), "--host", HOST, "--port", str(self.port))
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        code = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": code, PARENT_VARIABLE: str(os.getpid())}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *ARGUMENTS, *where],
            env={**os.environ, **EPHEMERAL, **settings, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._output = temporary_server_output.keep(process.stdout)
        return process
