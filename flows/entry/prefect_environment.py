"""Prefect's settings for this project. Importing this module sets them, so flows import it before Prefect.

Prefect reads the environment when it is imported. Each setting can be overridden by a variable of the same name. The
password of the project's own server is set too, unless Prefect has read its settings already.
"""

import os
import sys
from pathlib import Path

from flows.entry.password import tell_prefect
from tasks.system.errors import UserError
from tasks.system.processes import BAD_INPUT, complain

DEFAULTS = {
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # the temporary server of a run without `make up`: a busy machine needs more than the usual 20 seconds
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # so that `prefect deployment run --watch` shows the stages' lines and the reason of a failure
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's server would start seven processes for jobs, and nothing here asks for one
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

if "prefect" not in sys.modules:
    try:
        tell_prefect(os.environ)
    except UserError as error:
        sys.exit(complain(error, BAD_INPUT))
