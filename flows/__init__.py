"""What runs when: the Prefect flow over the stages, its copies for overrides, and the local servers.

Prefect reads its settings when it is imported, so the project's defaults are set here, before any module of this room
does. Each can be overridden by an environment variable of the same name.
"""

import os
from pathlib import Path

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
