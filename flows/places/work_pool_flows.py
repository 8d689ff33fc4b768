"""A point as a flow run in a work pool: what its worker starts.

The pipeline itself runs in a process of its own, with the code and in the folder of the point: edits of the project do
not reach it. `run_point` is for a host that sees the sweep's folders, `run_clone` for one that shares none with it.
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

from flows.building.dvc_lock import DVC_LOCK_FILE
from flows.places.heartbeat import BEAT_LABEL, BEATS_PER_LIMIT, beat
from flows.sweeps.point_folder import LOG_FILE, OUTCOME_FILE, outcome, point_environment, prepare
from flows.sweeps.point_process import PointProcess, end, how_it_ended, start
from flows.sweeps.points import POINTS, Point, code_of_stages
from tasks.system.files import read_json, write_bytes

FLOW = "sana15-point"
REPORT = "sana15-point"
"""The type of the artifact in which a run in a clone leaves what the sweep's folder of its point must have."""
MOST_CHARACTERS = 400_000
"""Of a file that is sent to Prefect: more than any dvc.lock has, and the end of a long log."""
LOOK_SECONDS = 0.5
REPORT_AGAIN_SECONDS = 5.0

Beat = Callable[[], str | None]
"""Gives a sign of life; returns why the run is to end, if it is."""


class PointFailed(Exception):
    """The point failed; the message is its reason."""


@flow(name=FLOW)
def run_point(folder: str, attempt: int, lost_seconds: int) -> State | None:
    """Run the point that a sweep has prepared in `folder`, and beat there for as long as it runs.

    A run that has lost its worker could not be cancelled any more, and one that could not beat for half of
    `lost_seconds` may soon be taken for dead: either ends itself, to be run again from its last checkpoint.

    Raises PointFailed. `attempt` is there to be seen.
    """
    here = Path(folder)
    beat(here)
    return run_in(here, folder_beats(here, lost_seconds), lost_seconds)


@flow(name=FLOW)
def run_clone(
    key: str,
    label: str,
    only: list[str] | None,
    params: dict[str, Any],
    code: str,
    lock: str,
    attempt: int,
    lost_seconds: int,
) -> State | None:
    """Run a point in this clone of the project, and beat to Prefect's server for as long as it runs.

    What `lock`, a dvc.lock, names comes out of DVC's default remote, what is built goes there, and what the sweep must
    know is left in an artifact. A run that has lost its worker, or that the sweep has given up, ends itself.

    Raises PointFailed, also where the clone has other `code` than the sweep.
    """
    client, run, worker = get_client(sync_client=True), UUID(flow_run.id), os.getppid()
    sign = server_beats(client, run)
    sign()  # what comes before the pipeline takes seconds
    project = Path.cwd()
    point = Point(key, label, project / POINTS / key, params, {}, 0, None if only is None else tuple(only))
    if code_of_stages() != code:
        raise PointFailed(f"the code in the clone {project} is not that of the sweep")
    prepare(project, point, remote=True)
    if lock:
        write_bytes(point.folder / DVC_LOCK_FILE, lock.encode())
    try:
        return run_in(point.folder, sign, lost_seconds)
    finally:
        report(client, run, point.folder, worker)


def run_in(folder: Path, sign: Beat, lost_seconds: int) -> State | None:
    """Run the point that is prepared in `folder`, with ten beats in `lost_seconds`. Raises PointFailed."""
    worker = os.getppid()
    process = start(folder, point_environment(folder, elsewhere=False))
    try:
        stopped = watch(process, worker, sign, lost_seconds / BEATS_PER_LIMIT)
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


def watch(process: PointProcess, worker: int, sign: Beat, seconds: float) -> str | None:
    """Wait for the end of the process, with a beat every so many seconds; or return why not to wait any longer."""
    last = -math.inf
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return None
        except subprocess.TimeoutExpired:
            pass
        if os.getppid() != worker:
            return "its worker is gone"
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            if (reason := sign()) is not None:
                return reason


def folder_beats(folder: Path, lost_seconds: int) -> Beat:
    """Beats in a shared folder: the run is to end if that is out of reach for half of `lost_seconds`."""
    last = time.monotonic()

    def sign() -> str | None:
        nonlocal last
        try:
            beat(folder)
            last = time.monotonic()
        except OSError:
            silent = time.monotonic() - last
            return f"it could not reach its folder for {silent:.0f} seconds" if silent > lost_seconds / 2 else None
        return None

    return sign


def server_beats(client: SyncPrefectClient, run: UUID) -> Beat:
    """Beats to Prefect's server: the run is to end if it is over there. A server that is away is waited for."""

    def sign() -> str | None:
        try:
            state = client.read_flow_run(run).state
            client.update_flow_run_labels(run, {BEAT_LABEL: str(time.time_ns())})
        except ObjectNotFound:
            return "Prefect knows it no more"
        except httpx.HTTPError:
            return None
        return f"it was given up: {state.name}" if state is not None and state.is_final() else None

    return sign


def report(client: SyncPrefectClient, run: UUID, folder: Path, worker: int) -> None:
    """Leave with Prefect the outcome of the point in `folder`, its dvc.lock, and the end of its log.

    There is no other copy of them: a server that is away is waited for, for as long as the worker lives.
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
