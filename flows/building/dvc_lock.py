"""What DVC knows of a workspace: which stages are up to date, which can come out of its cache, and what was built.

DVC is not made for threads: every call goes through one lock, in the flow's own process. The stages themselves run
outside it.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage.cache import RunCacheNotFoundError

from flows.building.child_processes import ChildFailed, ChildProcesses
from tasks.stages import Stage
from tasks.system.errors import UserError

LOCK_FILE = "dvc.lock"
DVC = """
from tasks.system.processes import die_with_parent
die_with_parent()
import dvc.cli
raise SystemExit(dvc.cli.main())
"""
"""`python -m dvc`, which would outlive a flow that is killed."""
MISSING = "Missing cache files"
"""What DVC warns of in a push, which it then calls a success."""

# its remarks on each change of dvc.lock would stand between the stages' lines
logging.getLogger("dvc").setLevel(logging.ERROR)


class DvcLock:
    """What DVC knows of `stages` in the workspace `root`, which must be the working directory.

    With `remote`, outputs that are not in DVC's cache are restored from its default remote. Raises UserError if
    dvc.yaml or dvc.lock cannot be read, if dvc.yaml does not have one of the stages, or if there is no such remote or
    it does not answer.
    """

    def __init__(self, root: Path, stages: Mapping[str, Stage], remote: bool = False) -> None:
        self.root, self.stages, self._remote = root, stages, remote
        self._lock = threading.Lock()
        self._moved = False
        try:
            # without git, DVC works the same but for its experiments
            self._repo = Repo(str(root), config=None if (root / ".git").exists() else {"core": {"no_scm": True}})
            with self._exclusively():
                known = {stage.cmd: stage for stage in self._repo.index.stages}
                self._keys = {name: _key(stage, known) for name, stage in stages.items()}
                self._stale = {name for name, stage in stages.items() if known[stage.command].changed()}
            if remote:
                self._ask_remote()
        except DvcException as error:
            raise UserError(f"{root}: DVC says: {_said(error)}") from None

    def up_to_date(self, name: str) -> bool:
        """Whether the stage's outputs are in place and are those of its params, code and inputs as they are now.

        Call it when all stages upstream are done. As long as nothing has changed, the one look at the start answers.
        """
        if not self._moved:
            return name not in self._stale
        with self._exclusively():
            return not self._stage(name).changed()

    def restore(self, name: str, may_begin: Callable[[], None]) -> bool:
        """Bring the stage's outputs back from DVC's cache if it was built before from what it would be built from now.

        What `dvc.lock` names and only the remote has comes from there. Like `dvc repro`, it removes the outputs that
        are in place first. A stage that writes past the cache has more in its folder than DVC could bring back: that
        one is always built. `may_begin` is called when its turn has come, and raises if it is too late.
        """
        with self._exclusively():
            may_begin()
            stage = self._stage(name)
            self._moved = True
            stage.remove_outs()
            if self.stages[name].uncached_files:
                return False
            try:
                self._repo.stage_cache.restore(stage, pull=self._remote)
            except RunCacheNotFoundError:
                return False
            self._repo.commit(self._keys[name], force=True)
        return True

    def note(self, name: str) -> Any:
        """What the stage is about to be built from: params, code and inputs as they are now, for `pin`."""
        with self._exclusively():
            stage = self._stage(name)
            stage.save_deps()
        return stage

    def pin(self, name: str, noted: Any) -> None:
        """Put what the stage has built into the cache and write its entry of `dvc.lock`.

        Raises UserError, and pins nothing, if what it was built from is not what it is now.
        """
        with self._exclusively():
            self._moved = True
            if changed := [text for dependency in noted.deps for text in _changes(dependency)]:
                raise UserError(f"{', '.join(changed)} changed while {name} ran: run again")
            self._repo.commit(self._keys[name], force=True)

    def key(self, name: str) -> str:
        """DVC's own name of the stage."""
        return self._keys[name]

    def entry(self, name: str) -> dict[str, Any]:
        """The stage's entry of `dvc.lock`."""
        return yaml.safe_load((self.root / LOCK_FILE).read_text(encoding="utf-8"))["stages"][self._keys[name]]

    def _ask_remote(self) -> None:
        """DVC takes what it cannot reach for missing, and all would be built again: so it is asked once before."""
        try:
            place = self._repo.cloud.get_remote().odb
            place.fs.info(place.path)
        except FileNotFoundError:
            return  # nothing has been pushed yet
        except DvcException:
            raise
        except Exception as error:  # of whatever kind the remote's own library has
            raise UserError(f"{self.root}: DVC's remote does not answer: {_said(error)}") from None

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with self._lock, lock_repo(self._repo):
            yield

    def _stage(self, name: str) -> Any:
        return self._repo.stage.collect(self._keys[name])[0]


def push(children: ChildProcesses, root: Path, keys: Iterable[str]) -> None:
    """Push the outputs of DVC's stages `keys` in the workspace `root` to its default remote, as a child that can be
    ended. Raises ChildFailed.
    """
    said: list[str] = []
    try:
        children.run([sys.executable, "-c", DVC, "push", *keys], root, {}, said.append)
    except ChildFailed as error:
        # the last line of DVC is where to ask for help
        raise ChildFailed(error.code, next((line for line in said if line.startswith("ERROR: ")), str(error))) from None
    if any(MISSING in line for line in said):
        raise ChildFailed(1, f"{MISSING.lower()} of {', '.join(keys)}, which the remote does not have either")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _changes(dependency: Any) -> list[str]:
    """What is not as it was when `dependency` was noted: its path, or the keys of params.yaml."""
    status = dependency.workspace_status().items()
    return [f"{path} ({', '.join(what)})" if isinstance(what, dict) else path for path, what in status]


def _key(stage: Stage, known: Mapping[str, Any]) -> str:
    """DVC's own name of a stage, which differs from ours where a stage needs two of DVC's groups."""
    if stage.command not in known:
        raise UserError(f"dvc.yaml does not have the stage {stage.name} of tasks/stages.py: run make dvc.yaml")
    return known[stage.command].name
