"""One point in its folder: written by the sweep, run as `python -m flows.sweeps.point_folder`, and what it left.

All that is known of a point lies in its folder, so that a sweep that was killed finds it again, on any host that sees
the folder. An outcome is written when the pipeline has ended by itself; a point that was stopped has none.
"""

import flows.entry.prefect_environment  # noqa: F401

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from prefect import get_client

from flows.building.workspace import write_copy
from flows.entry.password import API_VARIABLE, CLIENT_VARIABLE, SERVER_VARIABLE, refuse_server_of_settings
from flows.entry.terminal import FAILED, FlowFailed, exit_on_term, speak_plainly
from flows.full_pipeline import full_pipeline
from flows.sweeps.points import Point
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import read_json, write_json
from tasks.system.paths import RESULTS, STATE
from tasks.system.processes import BAD_INPUT, PARENT_VARIABLE, complain, die_with_parent
from tasks.tracking.mlflow_store import LOCAL_HOSTS

RECORDS = STATE / "point"
ORDER, OUTCOME, LOCK, LOG = (RECORDS / name for name in ("order.json", "outcome.json", "lock", "log"))
MODULE = "flows.sweeps.point_folder"
LEAVING_SECONDS = 60.0
"""How long a run of this point that was killed may take to end all that it had begun."""


@dataclass(frozen=True)
class Outcome:
    """How a point ended: without a `reason` it is done, and has the records of its models that the report made."""

    reason: str
    seconds: float
    models: list[dict[str, Any]]

    @property
    def done(self) -> bool:
        """Whether the pipeline went through."""
        return not self.reason


def prepare(project: Path, point: Point, remote: bool = False) -> None:
    """Write the point's folder: code, params and what to run, without an earlier outcome.

    With `remote` it takes data out of DVC's remote, and gives it what it builds.
    """
    write_copy(project, point.folder, point.values)
    forget(point)
    order = {"key": point.key, "label": point.label, "only": point.only, "remote": remote}
    write_json(point.folder / ORDER, order)


def forget(point: Point) -> None:
    """Take the outcome of an earlier run out of the point's folder."""
    (point.folder / OUTCOME).unlink(missing_ok=True)


def ordered(folder: Path) -> bool:
    """Whether the point's folder has been written."""
    return (folder / ORDER).exists()


def outcome(folder: Path) -> Outcome | None:
    """How the point in `folder` ended; None if it has not, was stopped, or its folder is gone."""
    path = folder / OUTCOME
    return Outcome(**read_json(path)) if path.exists() else None


def last_lines(folder: Path, count: int = 1) -> str:
    """The last lines of the point's log that are not blank, on one line."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return " / ".join([line.strip() for line in lines if line.strip()][-count:])


def environment(folder: Path, elsewhere: bool) -> dict[str, str]:
    """The environment of a point's process: this one's, without what belongs to this flow run.

    A point here talks to the Prefect server that the sweep talks to, with the sweep's password. One that runs
    `elsewhere` cannot reach a server that listens on this machine only, and may outlive it: it has one of its own, and
    does not need the password of this one. Prefect's files are in its folder.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    own.pop(PARENT_VARIABLE, None)
    if elsewhere and urlsplit(own.get(API_VARIABLE, "")).hostname in LOCAL_HOSTS:
        for name in (API_VARIABLE, CLIENT_VARIABLE, SERVER_VARIABLE):
            own.pop(name, None)
    elif not elsewhere and API_VARIABLE not in own:
        own[API_VARIABLE] = str(get_client(sync_client=True).api_url)  # the temporary one of this flow run
    return own | {"PREFECT_HOME": str(folder / ".prefect"), "PYTHONUNBUFFERED": "1"}


class Requeue:
    """On USR1, which Slurm sends before a job's time limit: end as on TERM, then put the job back into the queue."""

    def __init__(self) -> None:
        self._wanted = False
        signal.signal(signal.SIGUSR1, self._note)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self._wanted = True
        os.kill(os.getpid(), signal.SIGTERM)

    def act(self) -> None:
        """Put the job back, if it is to be."""
        if self._wanted and (job := os.environ.get("SLURM_JOB_ID")):
            subprocess.run(["scontrol", "requeue", job], check=False)


def main() -> int:
    """Run the point in the working directory; returns the exit code: 0 done, 1 failed, 2 bad input."""
    die_with_parent()
    exit_on_term()
    requeue = Requeue()
    speak_plainly()
    try:
        refuse_server_of_settings()
        with exclusive_lock(LOCK, f"{Path.cwd()} is in use", LEAVING_SECONDS):
            await_leavers()
            OUTCOME.unlink(missing_ok=True)
            order = read_json(ORDER)
            return _run(order["only"], order["remote"])
    except UserError as error:
        return complain(error, BAD_INPUT)
    finally:
        requeue.act()


def await_leavers() -> None:
    """Wait for stages that an earlier run of this point has left behind: they are saving, and end. Raises UserError."""
    for lock in (STATE / "locks").glob("*"):
        with exclusive_lock(lock, f"{lock.name} of an earlier run is still at work", LEAVING_SECONDS):
            pass


def _run(only: Sequence[str] | None, remote: bool) -> int:
    started, code, reason = time.monotonic(), 0, ""
    try:
        full_pipeline(only=only, remote=remote)
    except (UserError, FlowFailed) as error:
        code, reason = BAD_INPUT if isinstance(error, UserError) else FAILED, str(error)
    except Exception as error:
        code, reason = FAILED, f"{type(error).__name__}: {error}"
    models = scored(only) if code == 0 else []
    write_json(OUTCOME, asdict(Outcome(" ".join(reason.split()), round(time.monotonic() - started, 1), models)))
    return complain(reason, code) if code else 0


def scored(only: Sequence[str] | None) -> list[dict[str, Any]]:
    """The records of the models that this run has scored, as the report's summary has them."""
    if only is None:
        return read_json(RESULTS / "summary.json")["models"]
    from tasks.reporting.report_numbers import model_record

    return [model_record(name) for kind, _, name in (stage.partition("@") for stage in only) if kind == "geneval"]


if __name__ == "__main__":
    sys.exit(main())
