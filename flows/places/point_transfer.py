"""How a run in a work pool gets its point and returns the results: by a folder that all hosts share, or by a clone."""

import flows.entry.prefect_environment  # noqa: F401

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import FlowRun

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.durable_dvc_lock import DVC_LOCK_FILE
from flows.building.dvc_lock import push
from flows.places.git_origin import read_git_origin
from flows.places.heartbeat import BEAT_LABEL, read_beat
from flows.places.work_pool_flows import REPORT
from flows.sweeps.point_folder import OUTCOME_FILE
from flows.sweeps.points import Point, code_of_stages
from tasks.params.params_files import read_yaml
from tasks.stages import name_of
from tasks.system.errors import UserError
from tasks.system.files import write_bytes, write_json

MODULE = "flows/places/work_pool_flows.py"


class PointTransfer(Protocol):
    """How runs on other hosts get their points, and how their signs of life and results come back.

    A deployment of points has this `entrypoint` and these `pull_steps`, by which Prefect's worker gets the code.
    """

    entrypoint: str
    pull_steps: list[dict[str, Any]]

    def check(self) -> None:
        """Fix the code that all runs start from. Raises UserError if runs could not get it."""

    def parameters(self, point: Point) -> dict[str, Any]:
        """The parameters of this point's flow run. Raises UserError if shared stages cannot be pushed."""

    def last_sign(self, point: Point, run: FlowRun) -> str:
        """The last sign of life of the point's run."""

    def has_results(self, run: FlowRun) -> bool:
        """Whether this run has left results of the point that are not yet in the point's folder here."""

    def collect(self, point: Point, run: FlowRun) -> None:
        """Write the results that a run has left into the point's folder."""


class SharedFolder:
    """All hosts see the project's folder under the same path."""

    entrypoint = f"{MODULE}:run_point"

    def __init__(self, project: Path) -> None:
        self.pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]

    def check(self) -> None:
        """Runs use the folders that the sweep writes, so there is nothing to fix."""

    def parameters(self, point: Point) -> dict[str, Any]:
        """The path of the point's folder, which holds everything else."""
        return {"folder": str(point.folder)}

    def last_sign(self, point: Point, run: FlowRun) -> str:
        """The last beat in the point's folder."""
        return read_beat(point.folder)

    def has_results(self, run: FlowRun) -> bool:
        """Never: a run leaves its results in the point's folder and in no other place."""
        return False

    def collect(self, point: Point, run: FlowRun) -> None:
        """The run has written its results into the point's folder itself."""


class Clones:
    """Each run works in a clone of the project's git repository, and takes its data from DVC's remote."""

    entrypoint = f"{MODULE}:run_clone"

    def __init__(self, project: Path, client: SyncPrefectClient) -> None:
        self._project, self._client = project, client
        self._pushed: dict[str, str] = {}

    def check(self) -> None:
        """Fix commit and digest of the code as they are now. Raises UserError if other hosts could not clone them."""
        _ = self.pull_steps, self._code

    @cached_property
    def pull_steps(self) -> list[dict[str, Any]]:
        """Prefect's own step that clones a repository at a commit."""
        origin = read_git_origin(self._project)
        step = {"repository": origin.repository, "commit_sha": origin.commit}
        return [{"prefect.deployments.steps.git_clone": step}]

    @cached_property
    def _code(self) -> str:
        return code_of_stages()

    def parameters(self, point: Point) -> dict[str, Any]:
        """What a run must be told about its point, since `git clone` and `dvc pull` do not bring it."""
        if point.shared is not None:
            self._push(point.shared)
        return {
            "key": point.key,
            "label": point.label,
            "sweep": point.sweep,
            "name": point.name,
            "setting": dict(point.setting),
            "only": None if point.only is None else list(point.only),
            "params": dict(point.values),
            "code": self._code,
            "lock": yaml.safe_dump({"schema": "2.0", "stages": stages}) if (stages := lock_entries(point)) else "",
        }

    def _push(self, shared: Point) -> None:
        """Push the outputs of the shared stages to DVC's remote, once. They may have been built on this host.

        Raises UserError, also for later points, if that fails.
        """
        if shared.key not in self._pushed:
            try:
                push(ChildProcesses(), shared.folder, lock_entries(shared))
                self._pushed[shared.key] = ""
            except ChildFailed as error:
                self._pushed[shared.key] = str(error)
        if reason := self._pushed[shared.key]:
            raise UserError(f"{shared.label} could not be pushed to DVC's remote: {reason}")

    def last_sign(self, point: Point, run: FlowRun) -> str:
        """The last beat in the labels of the flow run."""
        return str(run.labels.get(BEAT_LABEL, ""))

    def has_results(self, run: FlowRun) -> bool:
        """Whether the run has left a report of a point that is done."""
        report = self._report(run)
        return report is not None and not report["outcome"]["reason"]

    def collect(self, point: Point, run: FlowRun) -> None:
        """Write outcome, dvc.lock and log from the run's report. `dvc pull` in the point's folder then gets models."""
        if (report := self._report(run)) is not None:
            for name, text in report["files"].items():
                write_bytes(point.folder / name, text.encode())
            write_json(point.folder / OUTCOME_FILE, report["outcome"])

    def _report(self, run: FlowRun) -> dict[str, Any] | None:
        of_run, reports = ArtifactFilterFlowRunId(any_=[run.id]), ArtifactFilterType(any_=[REPORT])
        found = self._client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run, type=reports))
        return found[0].data if found else None


def lock_entries(point: Point) -> dict[str, Any]:
    """The entries of dvc.lock that a run of this point can start from: its own, and those of its shared stages."""
    stages = _entries(point)
    if point.only is not None:
        stages = {key: entry for key, entry in stages.items() if name_of(entry["cmd"]) in point.only}
    return stages if point.shared is None else stages | lock_entries(point.shared)


def _entries(point: Point) -> dict[str, Any]:
    path = point.folder / DVC_LOCK_FILE
    return read_yaml(path)["stages"] if path.exists() else {}
