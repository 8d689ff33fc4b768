"""Building one stage: it is skipped, restored from DVC's cache, or run as a child process and recorded in dvc.lock."""

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
from flows.building.workspace import hold_workspace
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.params.user_files import digests_of, made_from_user_files
from tasks.stages import Stage, stages_of
from tasks.system.errors import UserError
from tasks.system.manifest import MANIFEST, sha256_file, verify_manifest


@dataclass(frozen=True)
class BuiltStage:
    """The result of a stage: each output with the digest of the manifest that lists its files."""

    stage: str
    outputs: dict[str, str]
    cached: bool
    seconds: float


class StageBuilder:
    """Builds the stages of one workspace; see `open_builder`. `build` may be called from several threads."""

    def __init__(self, root: Path, params: Params, dvc_lock: DvcLock, mlflow_runs: MlflowRuns) -> None:
        self.root, self.params, self.dvc_lock, self.mlflow_runs = root, params, dvc_lock, mlflow_runs
        self.child_processes = ChildProcesses(ForkServer() if can_fork(params.compute.device) else None)
        self._cpu_slots = CpuSlots(params.workflow.parallel_branches)
        self._running_builds, self._changed = 0, Condition()
        # A main stage that computes on no more threads than a branch stage need not compute alone.
        self._branches_use_all_threads = params.compute.threads <= params.compute.branch_threads

    def build(self, name: str, log: Callable[[str], None]) -> BuiltStage:
        """Bring the outputs of stage `name` up to date. The stages that it reads from must be up to date already.

        Raises ChildFailed if the stage fails or the flow is stopping, and UserError if its inputs, code or params were
        edited while it ran.
        """
        with self._changed:
            self.child_processes.refuse_if_stopping()
            self._running_builds += 1
        try:
            return self._build(name, log)
        finally:
            with self._changed:
                self._running_builds -= 1
                self._changed.notify_all()

    def _build(self, name: str, log: Callable[[str], None]) -> BuiltStage:
        stage = self.dvc_lock.stages[name]
        started = time.monotonic()
        user_files = digests_of(stage.user_files, self.params)
        if (
            self.dvc_lock.up_to_date(name)
            and self._uncached_files_are_whole(stage)
            and made_from_user_files(user_files, self.root / stage.output)
        ):
            return self._finish_cached(stage, started)
        if self.dvc_lock.restore(name, self.child_processes.refuse_if_stopping) and made_from_user_files(
            user_files, self.root / stage.output
        ):
            log("came out of DVC's cache")
            return self._finish_cached(stage, started)
        with self._cpu_slots.take(branch=not stage.alone and (stage.branch or self._branches_use_all_threads)):
            self.child_processes.refuse_if_stopping()
            started = time.monotonic()
            recorded = self.dvc_lock.record_inputs(name)
            self._run(stage, log)
        self.dvc_lock.commit(name, recorded)
        self.mlflow_runs.finish_stage(name, self.dvc_lock.entry(name))
        return BuiltStage(name, self._manifest_digests(stage), False, time.monotonic() - started)

    def close(self) -> None:
        """End the children, and wait until the outputs that they have finished are recorded in dvc.lock.

        Before that, the working directory and the lock of the workspace must be kept.
        """
        self.child_processes.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._running_builds == 0)

    def push(self, names: Sequence[str]) -> None:
        """Push the outputs of these stages to DVC's default remote. Raises ChildFailed."""
        push(self.child_processes, self.root, [self.dvc_lock.dvc_name(name) for name in names])

    def _uncached_files_are_whole(self, stage: Stage) -> bool:
        """Whether all files of the stage's manifest are in place, if it has files that DVC does not cache.

        DVC has checked the outputs that it caches.
        """
        if not stage.uncached_files:
            return True
        try:
            verify_manifest(self.root / stage.output)
        except UserError:
            return False
        return True

    def _run(self, stage: Stage, log: Callable[[str], None]) -> None:
        program, *arguments = shlex.split(stage.command)
        # `python` must be the interpreter of this process, whatever PATH says.
        command = [sys.executable if program == "python" else program, *arguments]
        self.child_processes.run(command, self.root, self.mlflow_runs.begin_stage(stage.name), log)

    def _finish_cached(self, stage: Stage, started: float) -> BuiltStage:
        digests = self._manifest_digests(stage)
        self.mlflow_runs.record_cached_stage(stage.name, next(iter(digests.values())))
        return BuiltStage(stage.name, digests, True, time.monotonic() - started)

    def _manifest_digests(self, stage: Stage) -> dict[str, str]:
        paths = {str(path): self.root / path for path in stage.written}
        manifests = {name: (path if path.is_dir() else path.parent) / MANIFEST for name, path in paths.items()}
        return {name: sha256_file(manifest) for name, manifest in manifests.items()}


@contextmanager
def open_builder(
    root: Path, flow_run_id: str, flow_parameters: Mapping[str, Any], remote: bool = False
) -> Iterator[StageBuilder]:
    """The builder of the workspace `root`, which is the working directory for as long as the block lasts.

    `flow_parameters` (profile and overrides) go to MLflow, and `remote` goes to `DvcLock`. However the block ends, no
    child outlives it, and every finished stage is recorded in dvc.lock. Raises UserError if the workspace is in use or
    cannot be read.
    """
    with hold_workspace(root), chdir(root):
        params = load_params(root / PARAMS_FILE)
        dvc_lock = DvcLock(root, stages_of(params), remote)
        with open_mlflow_runs(root, flow_run_id, flow_parameters) as mlflow_runs:
            builder = StageBuilder(root, params, dvc_lock, mlflow_runs)
            try:
                yield builder
            finally:
                builder.close()
