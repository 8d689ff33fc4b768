"""Prefect's temporary server, in a session of its own. Prefect starts it with a flow if no server is named.

Prefect would start it in the flow's session. Ctrl-C in a terminal goes to all processes of the session's foreground.
The server would then be gone before the flow, which has to report how it ended and would look for the server for
minutes. In a session of its own the server does not get Ctrl-C. Prefect ends it with the flow, and it ends itself if
the flow is killed.

Prefect's database needs no such care: each of its migrations is one transaction of SQLite, so a kill leaves no half of
one, and the next server goes on with the rest.

Importing this module imports Prefect's server, which takes seconds.
"""

import flows.entry.prefect_environment  # noqa: F401

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from flows.entry.project_servers import HOST
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


class ServerInOwnSession(SubprocessASGIServer):
    """Prefect's temporary server, but for how its process is started."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        where = ("--app-dir", str(prefect.__module_path__.parent), "--host", HOST, "--port", str(self.port))
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        code = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": code, PARENT_VARIABLE: str(os.getpid())}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *ARGUMENTS, *where],
            env={**os.environ, **EPHEMERAL, **settings, **own},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
