"""What runs when: the Prefect flow over the stages, its copies for overrides, and the local servers.

Prefect reads its settings when it is imported, so the project's defaults are set here, before any module of this room
does. Each can be overridden by an environment variable of the same name. The password of the project's own server is
set here too (`flows.access`), unless Prefect has read its settings already.
"""

import os
import sys
from pathlib import Path

from flows.access import tell_prefect
from tasks.errors import UserError
from tasks.processes import BAD_INPUT

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
    # seven processes for jobs that nothing here asks of MLflow's server
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

if "prefect" not in sys.modules:
    try:
        tell_prefect(os.environ)
    except UserError as error:
        from flows.terminal import complain

        sys.exit(complain(error, BAD_INPUT))
