"""The flows that workers of a work pool start, each for one point.

The pipeline itself runs in another process, in the point's folder and with the code there, so that edits of the project
do not reach it. `run_point` is for a host that sees the folders of the sweep, and `run_clone` for a host that does not.
"""

import flows.entry.prefect_environment  # noqa: F401

import math
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import State, flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.building.durable_dvc_lock import DVC_LOCK_FILE
from flows.places.heartbeat import BEAT_LABEL, BEATS_PER_LIMIT, write_beat
from flows.sweeps.point_folder import LOG_FILE, OUTCOME_FILE, outcome, point_environment, prepare
from flows.sweeps.point_process import PointProcess, end, how_it_ended, start
from flows.sweeps.points import POINTS, Point, code_of_stages
from tasks.system.files import read_json, write_bytes

FLOW = "sana15-point"
REPORT = "sana15-point"
"""The type of the artifact in which a run in a clone leaves the files for the point's folder on the sweep's host."""
MOST_CHARACTERS = 400_000
"""The most characters of a file that are sent to Prefect: more than any dvc.lock has, and the end of a long log."""
LOOK_SECONDS = 0.5
"""The time between two looks at the worker."""
REPORT_AGAIN_SECONDS = 5.0
"""The time between two attempts to leave the report."""

Beat = Callable[[], str | None]
"""Gives a sign of life. Returns why the run must end, or None if it may go on."""


class PointFailed(Exception):
    """The point failed. The message is its reason."""


@flow(name=FLOW)
def run_point(folder: str, attempt: int, lost_seconds: int) -> State | None:
    """Run the point that a sweep has prepared in `folder`, and give signs of life there for as long as it runs.

    The run ends itself if its worker is gone, since it could not be cancelled any more. It also ends itself if it could
    not write to the folder for half of `lost_seconds`, since the sweep will soon take it for dead and run the point
    again. The next run goes on from the last checkpoint.

    `attempt` is not used here: it is a parameter so that Prefect's UI shows it. Raises PointFailed.
    """
    here = Path(folder)
    write_beat(here)
    return run_in(here, folder_beats(here, lost_seconds), lost_seconds)


@flow(name=FLOW)
def run_clone(
    key: str,
    label: str,
    sweep: str,
    name: str,
    setting: dict[str, Any],
    only: list[str] | None,
    params: dict[str, Any],
    code: str,
    lock: str,
    attempt: int,
    lost_seconds: int,
) -> State | None:
    """Run a point in this clone of the project, and give signs of life to Prefect's server for as long as it runs.

    Prefect and MLflow show `sweep`, `name` and `setting`.

    `lock` is the text of a dvc.lock. The outputs that it names come from DVC's default remote, and new outputs are
    pushed there. The outcome is left in an artifact of the flow run. The run ends itself if its worker is gone, or if
    the sweep has given it up.

    Raises PointFailed, also if the digest of the clone's code is not `code`, the digest of the sweep's.
    """
    client, run, worker = get_client(sync_client=True), UUID(flow_run.id), os.getppid()
    give_sign = server_beats(client, run)
    give_sign()  # the steps before the pipeline take seconds, in which the sweep must hear this run
    project = Path.cwd()
    stages = None if only is None else tuple(only)
    point = Point(key, label, project / POINTS / key, params, setting, 0, stages, sweep=sweep, name=name)
    if code_of_stages() != code:
        raise PointFailed(f"the code in the clone {project} is not that of the sweep")
    prepare(project, point, remote=True)
    if lock:
        write_bytes(point.folder / DVC_LOCK_FILE, lock.encode())
    try:
        return run_in(point.folder, give_sign, lost_seconds)
    finally:
        report(client, run, point.folder, worker)


def run_in(folder: Path, give_sign: Beat, lost_seconds: int) -> State | None:
    """Run the point that is prepared in `folder`, and beat ten times in `lost_seconds`.

    Returns None if the point is done, and Prefect's state Crashed if the run had to stop. Raises PointFailed.
    """
    worker = os.getppid()
    process = start(folder, point_environment(folder, elsewhere=False))
    try:
        stopped = watch(process, worker, give_sign, lost_seconds / BEATS_PER_LIMIT)
    finally:
        if process.poll() is None:
            end([process])
    if (ended := outcome(folder)) is None:
        if stopped is not None:
            return Crashed(message=stopped)
        raise PointFailed(how_it_ended(process, folder))
    if not ended.done:
        raise PointFailed(ended.reason)
    return None


def watch(process: PointProcess, worker: int, give_sign: Beat, seconds: float) -> str | None:
    """Wait for the process, and beat every so many seconds. Returns None at its end, or why it must be stopped."""
    last = -math.inf
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return None
        except subprocess.TimeoutExpired:
            pass
        # The worker was this process's parent. The system gives the child of a dead parent another one.
        if os.getppid() != worker:
            return "its worker is gone"
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            if (reason := give_sign()) is not None:
                return reason


def folder_beats(folder: Path, lost_seconds: int) -> Beat:
    """Beats in a shared folder. The run must end if the folder is out of reach for half of `lost_seconds`."""
    last = time.monotonic()

    def give_sign() -> str | None:
        nonlocal last
        try:
            write_beat(folder)
            last = time.monotonic()
        except OSError:
            silent = time.monotonic() - last
            return f"it could not reach its folder for {silent:.0f} seconds" if silent > lost_seconds / 2 else None
        return None

    return give_sign


def server_beats(client: SyncPrefectClient, run: UUID) -> Beat:
    """Beats to Prefect's server. The run must end if the server calls it over. It goes on while the server is away."""

    def give_sign() -> str | None:
        try:
            state = client.read_flow_run(run).state
            client.update_flow_run_labels(run, {BEAT_LABEL: str(time.time_ns())})
        except ObjectNotFound:
            return "Prefect knows it no more"
        except httpx.HTTPError:
            return None
        return f"it was given up: {state.name}" if state is not None and state.is_final() else None

    return give_sign


def report(client: SyncPrefectClient, run: UUID, folder: Path, worker: int) -> None:
    """Leave the outcome of the point in `folder`, its dvc.lock and the end of its log in an artifact of the flow run.

    There is no other copy of them. So this waits for a server that is away, for as long as the worker lives.
    """
    if not (folder / OUTCOME_FILE).exists():
        return
    files = {str(name): folder / name for name in (DVC_LOCK_FILE, LOG_FILE)}
    texts = {
        name: path.read_text("utf-8", "replace")[-MOST_CHARACTERS:] for name, path in files.items() if path.exists()
    }
    data = {"outcome": read_json(folder / OUTCOME_FILE), "files": texts}
    while True:
        try:
            client.create_artifact(ArtifactCreate(type=REPORT, data=data, flow_run_id=run))
            return
        except httpx.HTTPError as error:
            refused = isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error
            if refused or os.getppid() != worker:
                raise
            time.sleep(REPORT_AGAIN_SECONDS)
