"""Building one stage: skip it, bring it back from the cache, or run it as a child process and pin what it wrote."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any

from flows.building.child_processes import ChildProcesses
from flows.building.cpu_slots import CpuSlots
from flows.building.dvc_lock import DvcLock, push
from flows.building.fork_server import ForkServer, can_fork
from flows.building.mlflow_runs import MlflowRuns, open_mlflow_runs
from flows.building.workspace import work_alone
from tasks.params.experiment import Params
from tasks.params.reading import PARAMS_FILE, load_params
from tasks.params.user_files import digests_of, made_from_user_files
from tasks.stages import Stage, stages_of
from tasks.system.errors import UserError
from tasks.system.manifest import MANIFEST, sha256_file, verify_manifest


@dataclass(frozen=True)
class BuiltStage:
    """What a stage left: each output with the digest of the manifest that lists it."""

    stage: str
    outputs: dict[str, str]
    cached: bool
    seconds: float


class StageBuilder:
    """Builds the stages of one workspace; see `open_builder`. `build` may be called from several threads."""

    def __init__(self, root: Path, params: Params, dvc_lock: DvcLock, mlflow_runs: MlflowRuns) -> None:
        self.root, self.params, self.dvc_lock, self.mlflow_runs = root, params, dvc_lock, mlflow_runs
        self.children = ChildProcesses(ForkServer() if can_fork(params.compute.device) else None)
        self._slots = CpuSlots(params.workflow.parallel_branches)
        self._under_way, self._changed = 0, Condition()
        # where a main stage computes on no more threads than a branch does, it need not compute alone
        self._one_size = params.compute.threads <= params.compute.branch_threads

    def build(self, name: str, log: Callable[[str], None]) -> BuiltStage:
        """Bring the outputs of stage `name` up to date; what it reads must be already.

        Raises ChildFailed, also when the flow is stopping, and UserError if what it reads was edited while it ran.
        """
        with self._changed:
            self.children.refuse_if_stopping()
            self._under_way += 1
        try:
            return self._build(name, log)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _build(self, name: str, log: Callable[[str], None]) -> BuiltStage:
        stage = self.dvc_lock.stages[name]
        started = time.monotonic()
        user_files = digests_of(stage.user_files, self.params)
        if (
            self.dvc_lock.up_to_date(name)
            and self._whole(stage)
            and made_from_user_files(user_files, self.root / stage.output)
        ):
            return self._cached(stage, started)
        if self.dvc_lock.restore(name, self.children.refuse_if_stopping) and made_from_user_files(
            user_files, self.root / stage.output
        ):
            log("came out of DVC's cache")
            return self._cached(stage, started)
        with self._slots.take(branch=stage.branch or self._one_size):
            self.children.refuse_if_stopping()
            started = time.monotonic()
            noted = self.dvc_lock.note(name)
            self._run(stage, log)
        self.dvc_lock.pin(name, noted)
        self.mlflow_runs.finish(name, self.dvc_lock.entry(name))
        return BuiltStage(name, self._digests(stage), False, time.monotonic() - started)

    def close(self) -> None:
        """End the children, and wait until what they have finished is pinned: only then may the folder be left."""
        self.children.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)

    def push(self, names: Sequence[str]) -> None:
        """Push the outputs of these stages to DVC's default remote. Raises ChildFailed."""
        push(self.children, self.root, [self.dvc_lock.key(name) for name in names])

    def _whole(self, stage: Stage) -> bool:
        """Whether all that the stage's manifest lists is in place. DVC has looked at the outputs that it keeps."""
        if not stage.uncached_files:
            return True
        try:
            verify_manifest(self.root / stage.output)
        except UserError:
            return False
        return True

    def _run(self, stage: Stage, log: Callable[[str], None]) -> None:
        program, *arguments = shlex.split(stage.command)
        command = [sys.executable if program == "python" else program, *arguments]
        self.children.run(command, self.root, self.mlflow_runs.begin(stage.name), log)

    def _cached(self, stage: Stage, started: float) -> BuiltStage:
        digests = self._digests(stage)
        self.mlflow_runs.link(stage.name, self.dvc_lock.entry(stage.name), next(iter(digests.values())))
        return BuiltStage(stage.name, digests, True, time.monotonic() - started)

    def _digests(self, stage: Stage) -> dict[str, str]:
        paths = {str(path): self.root / path for path in stage.written}
        manifests = {name: (path if path.is_dir() else path.parent) / MANIFEST for name, path in paths.items()}
        return {name: sha256_file(manifest) for name, manifest in manifests.items()}


@contextmanager
def open_builder(
    root: Path, flow_run_id: str, given: Mapping[str, Any], remote: bool = False
) -> Iterator[StageBuilder]:
    """The build of workspace `root`, which is the working directory for as long as the block lasts.

    `given` (profile and overrides) goes to MLflow; `remote` is that of `DvcLock`. However the block ends, no child
    outlives it, and what is finished is pinned. Raises UserError if the workspace is in use or cannot be read.
    """
    with work_alone(root), chdir(root):
        params = load_params(root / PARAMS_FILE)
        dvc_lock = DvcLock(root, stages_of(params), remote)
        with open_mlflow_runs(root, flow_run_id, given) as mlflow_runs:
            build = StageBuilder(root, params, dvc_lock, mlflow_runs)
            try:
                yield build
            finally:
                build.close()
