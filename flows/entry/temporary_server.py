"""Prefect's temporary server, in a session of its own. Prefect starts it with a flow if no server is named.

Prefect would start it in the flow's own session. Ctrl-C in a terminal goes to all of a session's processes in the
foreground. The server would then be gone before the flow, which has to tell it how it ended, and the flow would look
for it for minutes. In a session of its own the server outlives Ctrl-C. Prefect ends it with the flow, and it ends
itself if the flow is killed.

Importing this module imports Prefect's server, which takes seconds.
"""

import flows.entry.prefect_environment  # noqa: F401

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from tasks.system.processes import PARENT_VARIABLE

PROGRAM = "flows.entry.temporary_server_program"
PROJECT = Path(__file__).parents[2]
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect tells its temporary server."""


class ServerInOwnSession(SubprocessASGIServer):
    """Prefect's temporary server, but for how its process is started."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        code = {"PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}
        return subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(self.port)],
            env={**os.environ, **EPHEMERAL, **settings, **code, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
