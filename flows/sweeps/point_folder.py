"""The folder of one point: what the sweep writes into it, and the outcome and log that the point leaves there.

All records of a point lie in its folder. So a sweep that was killed and started again finds them, on any host that sees
the folder. An outcome is written when the pipeline has ended by itself. A point that was stopped has none.
"""

import flows.entry.prefect_environment  # noqa: F401

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import get_client

from flows.building.workspace import write_copy
from flows.entry.password import API_VARIABLE, CLIENT_PASSWORD_VARIABLE, SERVER_PASSWORD_VARIABLE
from flows.sweeps.points import Point
from tasks.system.files import read_json, write_json
from tasks.system.paths import STATE
from tasks.system.processes import PARENT_VARIABLE
from tasks.tracking.mlflow_store import LOCAL_HOSTS

POINT_RECORDS = STATE / "point"
ORDER_FILE = POINT_RECORDS / "order.json"
"""What the point's process is to run."""
OUTCOME_FILE = POINT_RECORDS / "outcome.json"
LOG_FILE = POINT_RECORDS / "log"
POINT_LOCK = POINT_RECORDS / "lock"
"""The point's process holds this lock while it runs, so that no point runs twice at once."""
MODULE = "flows.sweeps.point_program"
"""The program that runs the point whose folder is the working directory."""


@dataclass(frozen=True)
class Outcome:
    """How a point ended. A failed point has a `reason`; a point that is done has none, and a record of each model."""

    reason: str
    seconds: float
    models: list[dict[str, Any]]

    @property
    def done(self) -> bool:
        """Whether the pipeline has built everything that it was asked for."""
        return not self.reason


def prepare(project: Path, point: Point, remote: bool = False) -> None:
    """Write the point's folder: the code, the params, and what to run. An earlier outcome is removed.

    With `remote` the point takes data from DVC's remote, and pushes there what it builds.
    """
    write_copy(project, point.folder, point.values, f"point of a sweep, with {point.label}")
    remove_outcome(point)
    order = {"key": point.key, "label": point.label, "only": point.only, "remote": remote, "point": record_of(point)}
    write_json(point.folder / ORDER_FILE, order)


def record_of(point: Point) -> dict[str, Any]:
    """What a run of the pipeline is told about the point that it is: Prefect shows this as a parameter of the run."""
    return {"key": point.key, "name": point.name, "sweep": point.sweep, "setting": dict(point.setting)}


def remove_outcome(point: Point) -> None:
    """Remove the outcome of an earlier run from the point's folder."""
    (point.folder / OUTCOME_FILE).unlink(missing_ok=True)


def is_prepared(folder: Path) -> bool:
    """Whether the point's folder has been written."""
    return (folder / ORDER_FILE).exists()


def outcome(folder: Path) -> Outcome | None:
    """How the point in `folder` ended. None if it has not ended, was stopped, or its folder is gone."""
    path = folder / OUTCOME_FILE
    return Outcome(**read_json(path)) if path.exists() else None


def last_lines(folder: Path, count: int = 1) -> str:
    """The last lines of the point's log that are not blank, on one line."""
    path = folder / LOG_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return " / ".join([line.strip() for line in lines if line.strip()][-count:])


def point_environment(folder: Path, elsewhere: bool) -> dict[str, str]:
    """The environment of a point's process: that of this process, without the variables of this flow run.

    A point on this machine uses the Prefect server of the sweep, with the sweep's password. A point that runs
    `elsewhere` cannot reach a server that listens on this machine only, and may outlive it. Prefect then starts a
    temporary server for it, and the password of the server here is left out. `PREFECT_HOME` is in the point's folder.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    own.pop(PARENT_VARIABLE, None)
    if elsewhere and urlsplit(own.get(API_VARIABLE, "")).hostname in LOCAL_HOSTS:
        for name in (API_VARIABLE, CLIENT_PASSWORD_VARIABLE, SERVER_PASSWORD_VARIABLE):
            own.pop(name, None)
    elif not elsewhere and API_VARIABLE not in own:
        own[API_VARIABLE] = str(get_client(sync_client=True).api_url)  # this flow run's temporary server
    return own | {"PREFECT_HOME": str(folder / ".prefect"), "PYTHONUNBUFFERED": "1"}
