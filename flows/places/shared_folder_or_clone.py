"""How a run in a work pool gets its point, and how the sweep hears of it: by a folder that both see, or by a clone."""

import flows.entry.prefect_environment  # noqa: F401

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import FlowRun

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.dvc_lock import DVC_LOCK_FILE, push
from flows.places.git_origin import read_git_origin
from flows.places.heartbeat import BEAT_LABEL, read_beat
from flows.places.work_pool_flows import REPORT
from flows.sweeps.point_folder import OUTCOME_FILE
from flows.sweeps.points import Point, code_of_stages
from tasks.params.reading import read_yaml
from tasks.stages import name_of
from tasks.system.errors import UserError
from tasks.system.files import write_bytes, write_json

MODULE = "flows/places/work_pool_flows.py"


class PointTransfer(Protocol):
    """What a deployment of points is made of, and what comes back from its runs."""

    entrypoint: str
    pull_steps: list[dict[str, Any]]

    def check(self) -> None:
        """Settle what runs begin from. Raises UserError where they could not get it."""

    def parameters(self, point: Point) -> dict[str, Any]:
        """Those of the flow run of this point. Raises UserError."""

    def sign(self, point: Point, run: FlowRun) -> str:
        """The last sign of life of a run."""

    def done(self, run: FlowRun) -> bool:
        """Whether this run has left the point's results, beside those in its folder."""

    def collect(self, point: Point, run: FlowRun) -> None:
        """Bring what a run has left into the point's folder."""


class SharedFolder:
    """The project's folder is seen by all hosts, under the same path."""

    entrypoint = f"{MODULE}:run_point"

    def __init__(self, project: Path) -> None:
        self.pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]

    def check(self) -> None:
        """The sweep itself is there."""

    def parameters(self, point: Point) -> dict[str, Any]:
        """Its folder has all the rest."""
        return {"folder": str(point.folder)}

    def sign(self, point: Point, run: FlowRun) -> str:
        """The beat in the folder."""
        return read_beat(point.folder)

    def done(self, run: FlowRun) -> bool:
        """What is not in the folder is nowhere."""
        return False

    def collect(self, point: Point, run: FlowRun) -> None:
        """All is there."""


class Clones:
    """Each run has a clone of the project's git repository, and its data out of DVC's remote."""

    entrypoint = f"{MODULE}:run_clone"

    def __init__(self, project: Path, client: SyncPrefectClient) -> None:
        self._project, self._client = project, client
        self._pushed: dict[str, str] = {}

    def check(self) -> None:
        """Take commit and code as they are now. Raises UserError where others could not clone them."""
        _ = self.pull_steps, self._code

    @cached_property
    def pull_steps(self) -> list[dict[str, Any]]:
        """Prefect's own way to clone."""
        origin = read_git_origin(self._project)
        step = {"repository": origin.repository, "commit_sha": origin.commit}
        return [{"prefect.deployments.steps.git_clone": step}]

    @cached_property
    def _code(self) -> str:
        return code_of_stages()

    def parameters(self, point: Point) -> dict[str, Any]:
        """What `git clone` and `dvc pull` do not know of the point."""
        if point.shared is not None:
            self._push(point.shared)
        return {
            "key": point.key,
            "label": point.label,
            "only": None if point.only is None else list(point.only),
            "params": dict(point.values),
            "code": self._code,
            "lock": yaml.safe_dump({"schema": "2.0", "stages": stages}) if (stages := lock_entries(point)) else "",
        }

    def _push(self, shared: Point) -> None:
        """Have what the points share in DVC's remote, wherever it was made."""
        if shared.key not in self._pushed:
            try:
                push(ChildProcesses(), shared.folder, lock_entries(shared))
                self._pushed[shared.key] = ""
            except ChildFailed as error:
                self._pushed[shared.key] = str(error)
        if reason := self._pushed[shared.key]:
            raise UserError(f"{shared.label} could not be pushed to DVC's remote: {reason}")

    def sign(self, point: Point, run: FlowRun) -> str:
        """The beat on the flow run."""
        return str(run.labels.get(BEAT_LABEL, ""))

    def done(self, run: FlowRun) -> bool:
        """By its report."""
        report = self._report(run)
        return report is not None and not report["outcome"]["reason"]

    def collect(self, point: Point, run: FlowRun) -> None:
        """Outcome, dvc.lock and log; with these `dvc pull` in the point's folder gets its models."""
        if (report := self._report(run)) is not None:
            for name, text in report["files"].items():
                write_bytes(point.folder / name, text.encode())
            write_json(point.folder / OUTCOME_FILE, report["outcome"])

    def _report(self, run: FlowRun) -> dict[str, Any] | None:
        of_run, reports = ArtifactFilterFlowRunId(any_=[run.id]), ArtifactFilterType(any_=[REPORT])
        found = self._client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run, type=reports))
        return found[0].data if found else None


def lock_entries(point: Point) -> dict[str, Any]:
    """The entries of dvc.lock that a run of this point may go on from: its own, and those of the stages it shares."""
    stages = _entries(point)
    if point.only is not None:
        stages = {key: entry for key, entry in stages.items() if name_of(entry["cmd"]) in point.only}
    return stages if point.shared is None else stages | lock_entries(point.shared)


def _entries(point: Point) -> dict[str, Any]:
    path = point.folder / DVC_LOCK_FILE
    return read_yaml(path)["stages"] if path.exists() else {}
