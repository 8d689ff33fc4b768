"""How a run in a work pool gets its point, and how the sweep hears of it: by a folder that both see, or by a clone."""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import FlowRun

from flows.pins import LOCK_FILE
from flows.sweeps.heart import BEAT_LABEL, heard
from flows.sweeps.origin import origin_of
from flows.sweeps.point_run import REPORT
from flows.sweeps.points import Point, code_of
from flows.sweeps.running import OUTCOME
from tasks.files import write_bytes, write_json

MODULE = "flows/sweeps/point_run.py"


class Reach(Protocol):
    """What a deployment of points is made of, and what comes back from its runs."""

    entrypoint: str
    pull_steps: list[dict[str, Any]]

    def parameters(self, point: Point) -> dict[str, Any]:
        """Those of the flow run of this point."""

    def sign(self, point: Point, run: FlowRun) -> str:
        """The last sign of life of a run."""

    def collect(self, point: Point, run: FlowRun) -> bool:
        """Bring what a run has left into the point's folder; whether there was anything to bring."""


class SharedFolder:
    """The project's folder is seen by all hosts, under the same path."""

    entrypoint = f"{MODULE}:run_point"

    def __init__(self, project: Path) -> None:
        self.pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]

    def parameters(self, point: Point) -> dict[str, Any]:
        """Its folder has all the rest."""
        return {"folder": str(point.folder)}

    def sign(self, point: Point, run: FlowRun) -> str:
        """The beat in the folder."""
        return heard(point.folder)

    def collect(self, point: Point, run: FlowRun) -> bool:
        """All is there."""
        return False


class Clones:
    """Each run has a clone of the project's git repository, and its data out of DVC's remote.

    Commit and code are those at the first run. Raises UserError then where others could not clone what is here.
    """

    entrypoint = f"{MODULE}:run_clone"

    def __init__(self, project: Path, client: SyncPrefectClient) -> None:
        self._project, self._client = project, client

    @cached_property
    def pull_steps(self) -> list[dict[str, Any]]:
        """Prefect's own way to clone."""
        origin = origin_of(self._project)
        step = {"repository": origin.repository, "commit_sha": origin.commit}
        return [{"prefect.deployments.steps.git_clone": step}]

    @cached_property
    def _code(self) -> str:
        return code_of(self._project)

    def parameters(self, point: Point) -> dict[str, Any]:
        """What `git clone` and `dvc pull` do not know of the point."""
        lock = (point.folder if point.shared is None else point.shared.folder) / LOCK_FILE
        return {
            "key": point.key,
            "label": point.label,
            "only": None if point.only is None else list(point.only),
            "params": dict(point.values),
            "code": self._code,
            "lock": lock.read_text(encoding="utf-8") if lock.exists() else "",
        }

    def sign(self, point: Point, run: FlowRun) -> str:
        """The beat on the flow run."""
        return str(run.labels.get(BEAT_LABEL, ""))

    def collect(self, point: Point, run: FlowRun) -> bool:
        """Outcome, dvc.lock and log; with these `dvc pull` in the point's folder gets its models."""
        wanted = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=[REPORT])
        )
        if not (found := self._client.read_artifacts(artifact_filter=wanted)):
            return False
        for name, text in found[0].data["files"].items():
            write_bytes(point.folder / name, text.encode())
        write_json(point.folder / OUTCOME, found[0].data["outcome"])
        return True
