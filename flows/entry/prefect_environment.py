"""Prefect's settings for this project. Importing this module sets them, so flows import it before Prefect.

Prefect reads the environment when it is imported. A variable that the environment already has wins over the default
here. The password of the project's own server is set too, unless Prefect has read its settings already. Flows import
this module first of all. So it also imports the module that prints a command's first line, keeps what goes to the
project's own servers from a proxy, and lets errors that are known end a process with one line.
"""

import os
import sys
from pathlib import Path

import flows.entry.first_line  # noqa: F401
from flows.entry.password import set_prefect_password
from tasks.system.error_lines import show_known_errors_in_a_line
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, complain
from tasks.system.loopback import pass_by_proxies

DEFAULTS = {
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Without `make up`, Prefect starts a temporary server for each run. A busy machine needs more than the usual 20
    # seconds for that.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # `prefect deployment run --watch` then shows the lines of the stages and the reason of a failure.
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's server would start seven processes for jobs, and this project gives it no job.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

show_known_errors_in_a_line()
pass_by_proxies(os.environ)
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

# A process that has imported Prefect has read its settings: a password that is set now would not be used.
if "prefect" not in sys.modules:
    try:
        set_prefect_password(os.environ)
    except UserError as error:
        sys.exit(complain(error, BAD_INPUT))
