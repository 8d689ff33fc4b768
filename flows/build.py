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

from flows.children import Children
from flows.forks import Forks, can_fork
from flows.lineage import Lineage, open_lineage
from flows.pins import PinnedStage, Pins, push
from flows.slots import Slots
from flows.workspace import work_alone
from tasks.errors import UserError
from tasks.external import external_inputs, made_of
from tasks.files import MANIFEST, sha256_file, verify_manifest
from tasks.params import PARAMS_FILE, Params, load_params


@dataclass(frozen=True)
class BuiltStage:
    """What a stage left: each output with the digest of the manifest that lists it."""

    stage: str
    outputs: dict[str, str]
    cached: bool
    seconds: float


class Build:
    """Builds the stages of one workspace; see `open_build`. `build` may be called from several threads."""

    def __init__(self, root: Path, params: Params, pins: Pins, lineage: Lineage) -> None:
        self.root, self.params, self.pins, self.lineage = root, params, pins, lineage
        self.children = Children(Forks() if can_fork(params.compute.device) else None)
        self._slots = Slots(params.workflow.parallel_branches)
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
        stage = self.pins.stages[name]
        started = time.monotonic()
        external = external_inputs(name, self.params)
        if self.pins.up_to_date(name) and self._whole(stage) and self._made_of(external, stage):
            return self._cached(stage, started)
        if self.pins.restore(name, self.children.refuse_if_stopping) and self._made_of(external, stage):
            log("came out of DVC's cache")
            return self._cached(stage, started)
        with self._slots.take(branch=stage.branch or self._one_size):
            self.children.refuse_if_stopping()
            started = time.monotonic()
            noted = self.pins.note(name)
            self._run(stage, log)
        self.pins.pin(name, noted)
        self.lineage.finish(name, self.pins.entry(name))
        return BuiltStage(name, self._digests(stage), False, time.monotonic() - started)

    def close(self) -> None:
        """End the children, and wait until what they have finished is pinned: only then may the folder be left."""
        self.children.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)

    def push(self, names: Sequence[str]) -> None:
        """Push the outputs of these stages to DVC's default remote. Raises ChildFailed."""
        push(self.children, self.root, [self.pins.stages[name].key for name in names])

    def _whole(self, stage: PinnedStage) -> bool:
        """Whether all that the stage's manifest lists is in place; of outputs that DVC keeps it knows that itself."""
        if stage.kept:
            return True
        try:
            verify_manifest((self.root / stage.outputs[0]).parent)
        except UserError:
            return False
        return True

    def _made_of(self, external: dict[str, str], stage: PinnedStage) -> bool:
        return made_of(external, self.root / stage.outputs[0])

    def _run(self, stage: PinnedStage, log: Callable[[str], None]) -> None:
        program, *arguments = shlex.split(stage.command)
        command = [sys.executable if program == "python" else program, *arguments]
        self.children.run(command, self.root, self.lineage.begin(stage.name), log)

    def _cached(self, stage: PinnedStage, started: float) -> BuiltStage:
        digests = self._digests(stage)
        self.lineage.link(stage.name, self.pins.entry(stage.name), next(iter(digests.values())))
        return BuiltStage(stage.name, digests, True, time.monotonic() - started)

    def _digests(self, stage: PinnedStage) -> dict[str, str]:
        paths = {str(path): self.root / path for path in stage.outputs}
        manifests = {name: (path if path.is_dir() else path.parent) / MANIFEST for name, path in paths.items()}
        return {name: sha256_file(manifest) for name, manifest in manifests.items()}


@contextmanager
def open_build(root: Path, flow_run_id: str, given: Mapping[str, Any], remote: bool = False) -> Iterator[Build]:
    """The build of workspace `root`, which is the working directory for as long as the block lasts.

    `given` (profile and overrides) goes to MLflow; `remote` is that of `Pins`. However the block ends, no child
    outlives it, and what is finished is pinned. Raises UserError if the workspace is in use or cannot be read.
    """
    with work_alone(root), chdir(root):
        params = load_params(root / PARAMS_FILE)
        pins = Pins(root, remote)
        with open_lineage(root, flow_run_id, given) as lineage:
            build = Build(root, params, pins, lineage)
            try:
                yield build
            finally:
                build.close()
