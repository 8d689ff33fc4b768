"""The flow builds what DVC would, and pins it as DVC does, in a real project of three stages."""

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.building.child_processes import ChildFailed, ChildProcesses
from flows.building.dvc_lock import push
from flows.building.workspace import open_workspace
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tests.helpers.three_stages import (
    add_remote,
    build,
    new_project,
    seen,
    set_params,
    status,
    taken,
    three_stage_project,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with three_stage_project(tmp_path / "project", monkeypatch) as root:
        yield root


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


def test_a_remote_that_is_asked_for_and_is_not_there_stops_with_one_line(project: Path) -> None:
    with pytest.raises(UserError, match=r"DVC says: .*no remote specified.* dvc remote add -d"):
        build(project, remote=True)
