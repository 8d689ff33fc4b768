"""The flow builds what DVC would, and pins it as DVC does, in a real project of three stages."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.config import Config
from dvc.repo import Repo

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.dvc_lock import DvcLock, push
from flows.building.stage_builder import open_builder
from flows.building.workspace import open_workspace
from tasks import stages
from tasks.stages import Stage
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tests.helpers.small_workspace import write_params

DVC_YAML = """
stages:
  first:
    cmd: python make.py outputs/first
    params: [compute.seed]
    deps: [code]
    outs: [outputs/first]
  second:
    cmd: python make.py outputs/second outputs/first/seen
    params: [finetune.checkpoint_every]
    deps: [outputs/first]
    outs: [outputs/second]
  report:
    cmd: python make.py results outputs/second/seen
    deps: [outputs]
    outs:
      - results/seen:
          cache: false
"""


@dataclass(frozen=True)
class ShellStage(Stage):
    """A stage whose command is no module of the project."""

    words: str = ""

    @property
    def command(self) -> str:
        return self.words


TABLE = (
    ShellStage("first", Path("outputs/first"), (), ("compute.seed",), words="python make.py outputs/first"),
    ShellStage(
        "second",
        Path("outputs/second"),
        (Path("outputs/first"),),
        ("finetune.checkpoint_every",),
        words="python make.py outputs/second outputs/first/seen",
    ),
    ShellStage(
        "report",
        Path("results"),
        (Path("outputs"),),
        (),
        uncached_files=("seen",),
        words="python make.py results outputs/second/seen",
    ),
)

# writes what it reads, and the manifest of it; where `edit.py` lies beside it, that edits the project meanwhile
MAKE = """
import hashlib, json, sys
from pathlib import Path

out, *read = map(Path, sys.argv[1:])
seen = b"".join(path.read_bytes() for path in [Path("params.yaml"), *read])
out.mkdir(parents=True, exist_ok=True)
(out / "seen").write_bytes(seen)
digest = hashlib.sha256(seen).hexdigest()
(out / "manifest.json").write_text(json.dumps({"files": {"seen": {"bytes": len(seen), "sha256": digest}}}))
if Path("edit.py").exists():
    exec(Path("edit.py").read_text())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(stages, "TABLE", TABLE)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with chdir(new_project(tmp_path / "project")):
        yield tmp_path / "project"


def new_project(root: Path) -> Path:
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "make.py").write_text(MAKE)
    (root / "code").write_text("1")
    set_params(root, 1, 1)
    return root


def set_params(root: Path, seed: int, every: int) -> None:
    write_params(root, {"compute.seed": seed, "finetune.checkpoint_every": every})


def build(root: Path, remote: bool = False) -> dict[str, str]:
    """Bring every stage up to date; says what that took for each."""
    took: dict[str, str] = {}
    with chdir(root), open_builder(root, "test", {}, remote) as opened:
        for name in opened.dvc_lock.stages:
            said: list[str] = []
            built = opened.build(name, said.append)
            took[name] = ("restored" if said else "cached") if built.cached else "ran"
        if remote:
            opened.push(list(took))
    return took


def taken(first: str, second: str, report: str) -> Mapping[str, str]:
    return {"first": first, "second": second, "report": report}


def status(root: Path) -> dict:
    with Repo(str(root), config={"core": {"no_scm": True}}) as repo:
        return repo.status()


def test_what_was_built_is_pinned_and_then_up_to_date(project: Path) -> None:
    assert build(project) == taken("ran", "ran", "ran")
    assert status(project) == {}
    assert build(project) == taken("cached", "cached", "cached")


def test_a_changed_param_runs_only_the_stages_behind_it(project: Path) -> None:
    build(project)
    set_params(project, 1, 2)
    assert build(project) == taken("cached", "ran", "ran")


def test_a_stage_that_writes_the_same_bytes_again_stops_the_rebuilding(project: Path) -> None:
    build(project)
    (project / "code").write_text("2")
    assert build(project) == taken("ran", "cached", "cached")


def test_going_back_to_earlier_params_takes_the_outputs_out_of_the_cache(project: Path) -> None:
    build(project)
    before = (project / "outputs/second/seen").read_bytes()
    set_params(project, 1, 2)
    build(project)
    set_params(project, 1, 1)
    assert build(project) == taken("cached", "restored", "ran")
    assert (project / "outputs/second/seen").read_bytes() == before
    assert status(project) == {}


def test_deleted_outputs_come_back_from_the_cache(project: Path) -> None:
    build(project)
    shutil.rmtree(project / "outputs")
    assert build(project) == taken("restored", "restored", "cached")


@pytest.mark.parametrize("damage", ["all", "manifest.json"])
def test_a_report_that_is_not_all_there_is_made_again(project: Path, damage: str) -> None:
    build(project)
    shutil.rmtree(project / "results") if damage == "all" else (project / "results" / damage).unlink()
    assert build(project) == taken("cached", "cached", "ran")
    assert build(project) == taken("cached", "cached", "cached")


def test_a_report_that_dvc_repro_took_out_of_its_cache_is_made_whole(project: Path) -> None:
    build(project)
    shutil.rmtree(project / "results")
    with Repo(str(project)) as repo:
        repo.reproduce()
    assert status(project) == {} and not (project / "results" / "manifest.json").exists()
    assert build(project) == taken("cached", "cached", "ran")


def test_a_copy_whose_override_no_stage_reads_has_a_report_of_its_own(project: Path) -> None:
    build(project)
    copy = open_workspace(project, None, {"workflow.retries": 2})
    assert build(copy) == taken("restored", "restored", "ran")
    assert read_json(copy / "results" / "manifest.json")["files"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("Path('code').write_text('2')", "code changed while first ran: run again"),
        (
            "params = Path('params.yaml'); params.write_text(params.read_text().replace('seed: 1', 'seed: 2'))",
            r"params.yaml \(compute.seed\) changed while first ran: run again",
        ),
    ],
)
def test_what_was_edited_while_a_stage_ran_is_not_pinned_to_its_result(project: Path, edit: str, named: str) -> None:
    (project / "edit.py").write_text(edit)
    with pytest.raises(UserError, match=f"^{named}$"):
        build(project)
    assert not (project / "dvc.lock").exists()
    (project / "edit.py").unlink()
    assert build(project) == taken("ran", "ran", "ran")
    assert b"seed: 2" in (project / "outputs/first/seen").read_bytes() or "code" in named


def test_a_lock_file_without_its_cache_does_not_stop_a_fresh_clone(project: Path) -> None:
    build(project)
    shutil.rmtree(project / "outputs")
    shutil.rmtree(project / ".dvc" / "cache")
    assert build(project) == taken("ran", "ran", "cached")
    assert status(project) == {}


def test_pinning_and_dvc_repro_write_the_same_lock_file(project: Path, tmp_path: Path) -> None:
    build(project)
    other = new_project(tmp_path / "other")
    with chdir(other), Repo(str(other)) as repo:
        repo.reproduce()
    assert (project / "dvc.lock").read_bytes() == (other / "dvc.lock").read_bytes()


def test_a_truncated_lock_file_stops_with_one_line(project: Path) -> None:
    build(project)
    lock = project / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:-60] + b"\n  - :")
    with pytest.raises(UserError, match=r"dvc\.lock") as error:
        DvcLock(project, {})
    assert "\n" not in str(error.value)


def add_remote(root: Path, url: Path) -> None:
    with Config(str(root / ".dvc")).edit("repo") as settings:
        settings["remote"] = {"storage": {"url": str(url)}}
        settings["core"]["remote"] = "storage"


def test_another_clone_takes_from_the_remote_what_is_there_and_builds_the_rest(project: Path, tmp_path: Path) -> None:
    other, remote = new_project(tmp_path / "other"), tmp_path / "remote"
    for root in (project, other):
        add_remote(root, remote)
    assert build(project, remote=True) == taken("ran", "ran", "ran")
    shutil.copyfile(project / "dvc.lock", other / "dvc.lock")
    (lost,) = [path for path in remote.rglob("*") if path.is_file() and path.read_bytes() == seen(project, "second")]
    assert build(other, remote=True) == taken("restored", "restored", "ran")
    assert seen(other, "second") == seen(project, "second")
    lost.unlink()
    third = new_project(tmp_path / "third")
    add_remote(third, remote)
    shutil.copyfile(project / "dvc.lock", third / "dvc.lock")
    assert build(third, remote=True) == taken("restored", "ran", "ran")
    assert seen(third, "second") == seen(project, "second")


def test_what_was_cached_is_pushed_too(project: Path, tmp_path: Path) -> None:
    assert build(project) == taken("ran", "ran", "ran")  # as if its push had failed
    add_remote(project, tmp_path / "remote")
    assert build(project, remote=True) == taken("cached", "cached", "cached")
    kept = [path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert seen(project, "first") in kept and seen(project, "second") in kept


def test_a_push_of_what_is_nowhere_is_no_success(project: Path, tmp_path: Path) -> None:
    build(project)
    add_remote(project, tmp_path / "remote")
    shutil.rmtree(project / ".dvc/cache")
    with pytest.raises(ChildFailed, match=r"^missing cache files of first, which the remote does not have either$"):
        push(ChildProcesses(), project, ["first"])


def test_a_remote_that_does_not_work_says_so_in_one_line(project: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    add_remote(project, remote)
    (remote / "files/md5").mkdir(parents=True)
    for number in range(256):
        (remote / f"files/md5/{number:02x}").touch()
    with pytest.raises(ChildFailed, match=r"^ERROR: .*Not a directory"):
        build(project, remote=True)
    add_remote(project, remote / "files/md5/00")
    with pytest.raises(UserError, match=r"DVC's remote does not answer: .*Not a directory"):
        build(project, remote=True)


def seen(root: Path, stage: str) -> bytes:
    return (root / "outputs" / stage / "seen").read_bytes()


def test_a_remote_that_is_asked_for_and_is_not_there_stops_with_one_line(project: Path) -> None:
    with pytest.raises(UserError, match=r"DVC says: .*no remote specified.* dvc remote add -d"):
        build(project, remote=True)
