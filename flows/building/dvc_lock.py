"""DVC for the flow: which stages are up to date, which outputs come out of its cache, and the entries of `dvc.lock`.

DVC is not made for threads, and the flow builds stages in several threads. Therefore every call of DVC waits for one
lock in the flow's process. The stages themselves run without that lock, so that several can compute at once.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.dependency.base import Dependency
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.durable_dvc_lock import (
    DVC_LOCK_FILE,
    keep_copy,
    remove_damaged_rwlock,
    repair,
    set_aside,
    write_entry,
)
from flows.building.dvc_cache_check import remove_damaged_copies, remove_damaged_objects
from flows.building.dvc_settings import read_dvc_settings
from tasks.stages import Stage
from tasks.system.errors import UserError
from tasks.system.files import write_bytes
from tasks.system.manifest import MANIFEST, damaged_files
from tasks.system.paths import STATE

UNCHECKED = STATE / "unchecked"
"""The folder of marks of stages whose outputs are being restored."""
DVC_PROGRAM = """
from tasks.system.processes import die_with_parent
die_with_parent()
import dvc.cli
raise SystemExit(dvc.cli.main())
"""
"""DVC's command line, in a process that ends with the flow. `python -m dvc` would outlive a flow that is killed."""
MISSING_FILES_WARNING = "Missing cache files"
"""How DVC's warning about files that it could not push begins. DVC calls such a push a success."""

# DVC reports each change of dvc.lock. These lines would stand between the lines of the stages.
logging.getLogger("dvc").setLevel(logging.ERROR)


class DvcLock:
    """DVC's records of `stages` in the workspace `root`, which must be the working directory.

    With `remote`, outputs that are not in DVC's cache are restored from its default remote. A damaged dvc.lock is
    repaired first (`flows.building.durable_dvc_lock`).

    Raises UserError if DVC's settings are damaged, if dvc.yaml cannot be read, if a stage is missing in dvc.yaml, or if
    `remote` is true and there is no remote or it does not answer.
    """

    def __init__(self, root: Path, stages: Mapping[str, Stage], remote: bool = False) -> None:
        self.root, self.stages, self._remote = root, stages, remote
        self._lock = threading.Lock()
        self._outputs_changed = False
        read_dvc_settings(root)
        try:
            # Without git all of DVC works but its experiments. It must be told that there is no git repository.
            self._repo = Repo(str(root), config=None if (root / ".git").exists() else {"core": {"no_scm": True}})
            self._read_repaired()
            if remote:
                self._check_remote_answers()
        except DvcException as error:
            raise UserError(f"{root}: DVC says: {_one_line(error)}") from None

    def _read_repaired(self) -> None:
        """Read dvc.yaml and dvc.lock, of which a damaged dvc.lock gives way to its last good copy.

        DVC's schema takes entries on which DVC's code then fails, such as `md5: 927`.
        """
        with self._exclusively():
            remove_damaged_rwlock(self.root)
            repair(self.root)
        try:
            self._read()
        except (DvcException, UserError):
            raise
        except Exception:
            if not (self.root / DVC_LOCK_FILE).exists():
                raise
            with self._exclusively():
                set_aside(self.root)
            self._read()

    def _read(self) -> None:
        with self._exclusively():
            # The command is the key, since DVC has its own names for stages where ours need two of its groups.
            known = {stage.cmd: stage for stage in self._repo.index.stages}
            self._dvc_names = {name: _dvc_name(stage, known) for name, stage in self.stages.items()}
            self._stale = {
                name
                for name, stage in self.stages.items()
                if self._unchecked(name).exists() or known[stage.command].changed()
            }
            keep_copy(self.root)

    def up_to_date(self, name: str) -> bool:
        """Whether the stage's outputs are in place and belong to its params, code and inputs as they are now.

        Call this when all stages upstream are done. Until a stage is built or restored, the check at the start answers.
        """
        if not self._outputs_changed:
            return name not in self._stale
        with self._exclusively():
            return not self._unchecked(name).exists() and not self._dvc_stage(name).changed()

    def restore(self, name: str, may_begin: Callable[[], None]) -> bool:
        """Restore the stage's outputs from DVC's cache, if the cache has them for its present params, code and inputs.

        Returns whether they were restored. With `remote`, files that only the remote has are fetched from there. Like
        `dvc repro`, this first removes the outputs that are in place. A stage with uncached files is never restored,
        since DVC would bring back only a part of its folder.

        Every restored file is read once and checked against its manifest. What is damaged is taken out of the cache and
        out of place. With `remote` it is then fetched anew.

        `may_begin` is called when the lock is held and before anything is removed. It raises if the flow is stopping.
        """
        with self._exclusively():
            may_begin()
            stage = self._dvc_stage(name)
            self._outputs_changed = True
            if self.stages[name].uncached_files:
                stage.remove_outs()
                return False
            # a flow that is killed from here on leaves outputs that DVC takes for whole and that nobody has checked
            write_bytes(self._unchecked(name), b"")
            stage.remove_outs()
            restored, removed = self._check_out(name)
            if removed and self._remote:
                restored, _ = self._check_out(name)
            if restored:
                (stage := self._dvc_stage(name)).save()
                # what is in place has been checked, and must not be taken out of the cache once more
                stage.commit(relink=False)
                write_entry(self.root, stage)
            self._unchecked(name).unlink()
        return restored

    def _check_out(self, name: str) -> tuple[bool, bool]:
        """Put the stage's outputs in place if DVC's cache has them whole. Returns whether it had.

        If not, none are in place, and damaged objects of theirs are no longer in the cache. The second value says
        whether there were any.
        """
        stage, folders = self._dvc_stage(name), [self.root / path for path in self.stages[name].written]
        damaged: list[Path] = []
        try:
            self._take_from_cache(stage)
            damaged = [path for folder in folders for path in damaged_files(folder)]
            if not damaged:
                return True, False
        except RunCacheNotFoundError:
            pass
        # where a file does not fit its manifest, either of the two may be the damaged one
        suspects = [*damaged, *(folder / MANIFEST for folder in folders)] if damaged else []
        removed = remove_damaged_objects(self._repo, {path.stat().st_size for path in suspects if path.is_file()})
        stage.remove_outs()
        if damaged or removed:
            what = f"{name}: DVC's cache held a damaged {damaged[0] if damaged else 'list of its files'}"
            print(f"sana15: {what}, which is not used: {len(removed)} objects removed", file=sys.stderr, flush=True)
        return False, bool(removed)

    def _take_from_cache(self, stage: DvcStage) -> None:
        """Put the stage's outputs in place that dvc.lock or DVC's run cache names. Raises RunCacheNotFoundError.

        DVC looks in its run cache only where dvc.lock has no entry that fits. An entry may name what no cache has.
        """
        try:
            self._repo.stage_cache.restore(stage, pull=self._remote)
        except RunCacheNotFoundError:
            for out in stage.outs:
                out.hash_info = HashInfo()
            self._repo.stage_cache.restore(stage, pull=self._remote)

    def record_inputs(self, name: str) -> DvcStage:
        """Record the params, code and inputs that the stage is about to be built from. `commit` takes this record."""
        with self._exclusively():
            stage = self._dvc_stage(name)
            stage.save_deps()
        return stage

    def commit(self, name: str, recorded: DvcStage) -> None:
        """Put the stage's outputs into DVC's cache and write its entry of `dvc.lock`.

        Raises UserError, and writes nothing, if params, code or inputs are no longer as `record_inputs` found them: DVC
        would otherwise record the outputs as made from the edited files.
        """
        with self._exclusively():
            self._outputs_changed = True
            if changed := [text for dependency in recorded.deps for text in _changed_paths(dependency)]:
                raise UserError(f"{', '.join(changed)} changed while {name} ran: run again")
            (stage := self._dvc_stage(name)).save()
            remove_damaged_copies(stage)
            stage.commit()
            write_entry(self.root, stage)

    def dvc_name(self, name: str) -> str:
        """DVC's own name of the stage."""
        return self._dvc_names[name]

    def entry(self, name: str) -> dict[str, Any]:
        """The stage's entry of `dvc.lock`."""
        return yaml.safe_load((self.root / DVC_LOCK_FILE).read_text(encoding="utf-8"))["stages"][self._dvc_names[name]]

    def _check_remote_answers(self) -> None:
        """Raise UserError if the remote does not answer.

        DVC treats a file that it cannot reach as missing. With a remote that is down, every stage would be built again.
        """
        try:
            storage = self._repo.cloud.get_remote().odb
            storage.fs.info(storage.path)
        except FileNotFoundError:
            return  # the remote answers, and nothing has been pushed to it yet
        except DvcException:
            raise
        except Exception as error:  # each kind of remote has a library with exceptions of its own
            raise UserError(f"{self.root}: DVC's remote does not answer: {_one_line(error)}") from None

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with self._lock, lock_repo(self._repo):
            yield

    def _unchecked(self, name: str) -> Path:
        """The file that is there while the stage's outputs come out of DVC's cache and have not been checked."""
        return self.root / UNCHECKED / name

    def _dvc_stage(self, name: str) -> DvcStage:
        return self._repo.stage.collect(self._dvc_names[name])[0]


def push(children: ChildProcesses, root: Path, dvc_names: Iterable[str]) -> None:
    """Push the outputs of DVC's stages `dvc_names` in the workspace `root` to DVC's default remote.

    A push may take long, and a thread cannot be interrupted. So the push runs in a child process, which the flow can
    end. Raises ChildFailed.
    """
    said: list[str] = []
    try:
        children.run([sys.executable, "-c", DVC_PROGRAM, "push", *dvc_names], root, {}, said.append)
    except ChildFailed as error:
        # The last line that DVC prints says where to ask for help, so the reason is on a line above.
        raise ChildFailed(error.code, next((line for line in said if line.startswith("ERROR: ")), str(error))) from None
    if any(MISSING_FILES_WARNING in line for line in said):
        raise ChildFailed(
            1, f"{MISSING_FILES_WARNING.lower()} of {', '.join(dvc_names)}, which the remote does not have either"
        )


def _one_line(error: Exception) -> str:
    """The error's message on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def _changed_paths(dependency: Dependency) -> list[str]:
    """What has changed in `dependency` since it was recorded: its path, or the path and the keys of params.yaml."""
    status = dependency.workspace_status().items()
    return [f"{path} ({', '.join(what)})" if isinstance(what, dict) else path for path, what in status]


def _dvc_name(stage: Stage, known: Mapping[str, DvcStage]) -> str:
    """DVC's own name of a stage. It differs from ours where a stage needs two of DVC's groups."""
    if stage.command not in known:
        raise UserError(f"dvc.yaml does not have the stage {stage.name} of tasks/stages.py: run make dvc.yaml")
    return known[stage.command].name
