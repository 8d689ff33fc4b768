"""Points as flow runs in a Prefect work pool, of any kind: processes on several hosts, or jobs of Kubernetes.

Either all hosts see the project in one folder of the same path, or each run has a clone
(`flows.places.point_transfer`). Prefect does not notice that a worker was killed: it calls the worker's runs
Running for ever. So a run gives signs of life, and the sweep marks a silent run as Crashed, or as Cancelled if it was
being cancelled.
"""

import flows.entry.prefect_environment  # noqa: F401

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling, Crashed

from flows.entry.password import API_VARIABLE, wrong_password_message
from flows.places.heartbeat import Silence
from flows.places.point_transfer import Clones, PointTransfer, SharedFolder
from flows.places.work_pool_flows import FLOW
from flows.sweeps.place_interface import QUERY_INTERVAL_SECONDS, SHARED_FOLDER_DELAY_SECONDS, PointState
from flows.sweeps.point_folder import outcome
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Cluster
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_json

ACTIVE = [one for one in StateType if one not in TERMINAL_STATES]
PAGE = 200
"""Flow runs in one answer. Prefect's server gives no more by default."""
MOST_WAITING = 50
"""The most runs that wait for a worker. With hundreds of late runs, Prefect's server on SQLite answers 503."""
BEGIN_SECONDS = 1800.0
"""How long a worker may take to begin a run that it has taken. A job of Kubernetes may wait for its node."""
SERVER_AWAY_SECONDS = 120.0
"""How long Prefect's server may be away before a point fails."""

Answer = TypeVar("Answer")


class WorkPool:
    """Runs points in the work pool `pool`. `tag` marks the runs of one sweep.

    Raises UserError if Prefect's server or the pool cannot be used.
    """

    def __init__(self, project: Path, pool: str, cluster: Cluster, tag: str) -> None:
        if get_current_settings().api.url is None:
            raise UserError(
                f"where is work-pool, but {API_VARIABLE} names no server: set it to one that the workers can reach"
            )
        self._project, self._pool, self._cluster, self._tag = project, pool, cluster, tag
        self._client, self._silence = get_client(sync_client=True), Silence()
        self._transfer: PointTransfer = Clones(project, self._client) if cluster.clone else SharedFolder(project)
        self._project_tag = f"sana15 points of {project}{' in clones' if cluster.clone else ''}"
        self._variables = self._job_variables()
        self._deployment: UUID | None = None
        self._active_runs: dict[str, FlowRun] = {}
        self._asked_at = 0.0

    def check(self) -> None:
        """Fix the code that all runs start from, before the first run. Raises UserError if runs could not get it."""
        self._transfer.check()

    def find_run(self, point: Point) -> str | None:
        """The flow run of this point that waits or runs. None if there is none."""
        return next((handle for handle, run in self._current_runs().items() if point.key in run.tags), None)

    def has_room(self) -> bool:
        """Whether fewer than MOST_WAITING runs wait. The workers and the pool's limit decide how many run at once."""
        return sum(run.state.is_scheduled() for run in self._current_runs().values()) < MOST_WAITING

    def submit(self, point: Point) -> str:
        """Schedule a flow run, or return the run that is active or already has the point's results.

        If another sweep, on whichever host, schedules the same point at this moment, both get the same flow run.
        """
        earlier = self._runs(point.key)
        run = next((run for run in earlier if run.state_type in ACTIVE), None)
        if run is None:
            run = next((run for run in earlier if self._answer(lambda run=run: self._transfer.has_results(run))), None)
        if run is None:
            run = self._create(point, 1 + max((run.parameters["attempt"] for run in earlier), default=0))
        self._active_runs[str(run.id)] = run
        return str(run.id)

    def _create(self, point: Point, attempt: int) -> FlowRun:
        parameters = self._transfer.parameters(point) | {"attempt": attempt, "lost_seconds": self._cluster.lost_seconds}
        return self._answer(
            lambda: self._client.create_flow_run_from_deployment(
                self._deploy(),
                name=point.name or point.label,
                parameters=parameters,
                tags=[self._project_tag, point.key, self._tag],
                idempotency_key=f"{self._project_tag} {self._pool} {point.key} {attempt}",
                job_variables=self._variables,
            )
        )

    def state(self, point: Point, handle: str) -> PointState:
        """The state of the point: by Prefect, and by the outcome when the run is over.

        A run that Prefect calls active must also give signs of life.
        """
        if (run := self._run(handle)) is None:
            return self._by_outcome(point) or PointState("lost", f"Prefect knows no flow run {handle} any more")
        if run.state.is_final():
            return self._ended_state(point, run)
        if run.state_type not in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
            return PointState("queued")
        pending = run.state.is_pending()
        limit = BEGIN_SECONDS if pending else self._cluster.lost_seconds
        silent = self._silence.seconds(
            handle, run.state_type.value if pending else self._transfer.last_sign(point, run)
        )
        if silent < limit:
            return PointState("queued" if pending else "running")
        reason = f"nothing was heard of it for {silent:.0f} seconds: its worker was killed, or its host is gone"
        # A point whose run was being cancelled is not wanted, so it is not run again as a crashed one would be.
        given_up = (Cancelled if run.state.is_cancelling() else Crashed)(message=reason)
        self._answer(lambda: self._client.set_flow_run_state(handle, given_up, force=True))
        self._active_runs.pop(handle, None)
        return self._ended_state(point, run.model_copy(update={"state": given_up}))

    def cancel(self, handles: list[str]) -> None:
        """Ask Prefect to cancel these runs. Their workers send them TERM, and they save a checkpoint."""
        for handle in handles:
            try:
                self._client.set_flow_run_state(handle, Cancelling())
            except (httpx.HTTPError, ObjectNotFound):
                continue

    def cancel_all(self) -> None:
        """Cancel every run that this sweep has scheduled."""
        self.cancel([str(run.id) for run in self._active(self._tag)])

    def _ended_state(self, point: Point, run: FlowRun) -> PointState:
        """The state of a point whose flow run has ended or was given up. The point may be done nevertheless."""
        self._answer(lambda: self._transfer.collect(point, run))
        if (ended := self._by_outcome(point)) is not None:
            return ended
        said = " ".join((run.state.message or "it said nothing").split())
        if run.state.is_completed():
            late = self._silence.seconds(str(run.id), run.state_type.value) < SHARED_FOLDER_DELAY_SECONDS
            return (
                PointState("running")
                if late
                else PointState("failed", "its flow run is completed, but it left no outcome")
            )
        if run.state.is_crashed():
            return PointState("lost", said)
        return PointState("failed", f"{run.state.name} in Prefect: {said}")

    def _by_outcome(self, point: Point) -> PointState | None:
        ended = outcome(point.folder)
        return None if ended is None else PointState("done") if ended.done else PointState("failed", ended.reason)

    def _current_runs(self) -> dict[str, FlowRun]:
        """All of the project's runs in the pool that are not over, by one query for all points."""
        if time.monotonic() - self._asked_at > QUERY_INTERVAL_SECONDS:
            self._active_runs = {str(run.id): run for run in self._active()}
            self._asked_at = time.monotonic()
        return self._active_runs

    def _run(self, handle: str) -> FlowRun | None:
        """The flow run. None if Prefect does not know it."""
        if (run := self._current_runs().get(handle)) is not None:
            return run
        try:
            return self._answer(lambda: self._client.read_flow_run(UUID(handle)))
        except ObjectNotFound:
            return None

    def _active(self, *tags: str) -> list[FlowRun]:
        return self._runs(*tags, state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=ACTIVE)))

    def _runs(self, *tags: str, state: filters.FlowRunFilterState | None = None) -> list[FlowRun]:
        """The project's runs in this pool that have all these tags and pass the filter for states, if there is one."""
        tagged = filters.FlowRunFilterTags(all_=[self._project_tag, *tags])
        asked = {
            "flow_run_filter": filters.FlowRunFilter(tags=tagged, state=state),
            "work_pool_filter": filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[self._pool])),
        }
        found: list[FlowRun] = []
        while True:
            page = partial(self._client.read_flow_runs, **asked, limit=PAGE, offset=len(found))
            found += (answer := self._answer(page))
            if len(answer) < PAGE:
                return found

    def _deploy(self) -> UUID:
        """The deployment of this project's points in the pool. It is made when it is first used."""
        if self._deployment is None:
            flow_id = self._answer(lambda: self._client.create_flow_from_name(FLOW))
            # A digest is part of the name. Runs that wait thus keep their deployment, and the commit of their clones,
            # when a later sweep deploys another commit.
            made_of = [str(self._project), self._transfer.entrypoint, self._transfer.pull_steps]
            self._deployment = self._answer(
                lambda: self._client.create_deployment(
                    flow_id,
                    name=f"{self._pool}-{sha256_json(made_of)[:8]}",
                    description=f"Points of sweeps of {self._project}",
                    work_pool_name=self._pool,
                    entrypoint=self._transfer.entrypoint,
                    pull_steps=self._transfer.pull_steps,
                    tags=["sana15"],
                )
            )
        return self._deployment

    def _job_variables(self) -> dict[str, Any]:
        """The values of `cluster` in the sweep's file that the pool's template has variables for."""
        try:
            template = self._answer(lambda: self._client.read_work_pool(self._pool)).base_job_template
        except ObjectNotFound:
            raise UserError(
                f"there is no work pool {self._pool}: prefect work-pool create {self._pool} --type process"
            ) from None
        known = template.get("variables", {}).get("properties", {})
        asked = asdict(self._cluster).items()
        return {name: value for name, value in asked if name in known and value is not None}

    def _answer(self, question: Callable[[], Answer]) -> Answer:
        """The answer of Prefect's server. Waits for a server that is away.

        Raises UserError if it stays away for longer than SERVER_AWAY_SECONDS, or if it refuses, and ObjectNotFound.
        """
        began = time.monotonic()
        while True:
            try:
                answer = question()
                # Prefect's client waits and tries again by itself. No run could be heard in that time.
                if (seconds := time.monotonic() - began) > QUERY_INTERVAL_SECONDS:
                    self._silence.subtract(seconds)
                return answer
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.NOT_FOUND:
                    raise ObjectNotFound(error) from error
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    raise UserError(wrong_password_message(str(self._client.api_url))) from None
                if not error.response.is_server_error:
                    raise UserError(f"Prefect refuses: {' '.join(error.response.text.split())}") from None
                failure = str(error.response.status_code)
            except httpx.TransportError as error:
                failure = str(error) or type(error).__name__
            if (seconds := time.monotonic() - began) > SERVER_AWAY_SECONDS:
                self._silence.subtract(seconds)
                raise UserError(f"Prefect at {self._client.api_url} does not answer: {failure}")
            time.sleep(QUERY_INTERVAL_SECONDS)
