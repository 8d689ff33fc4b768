"""`make clean` deletes what runs have made, only that, and only when nothing is running."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from flows.clean import clean, found_in, in_words, main, size_of
from flows.entry.project_servers import SERVERS_FOLDER
from flows.sweeps.point_folder import POINT_LOCK
from tasks.params.params_files import read_yaml
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tests.helpers.small_workspace import PROJECT

MADE = (
    "outputs/grown/model.safetensors",
    "results/report.html",
    "runs/smoke/params.yaml",
    "runs/smoke/outputs/shards/a.tar",
    ".sana15/state/train/1/state.json",
    ".sana15/password",
    "mlflow.db",
    "mlflow.db-wal",
    "mlartifacts/1/a.png",
    "mlruns/0/meta.yaml",
    ".prefect/prefect.db",
    ".dvc/cache/files/md5/ab/cd",
    ".dvc/tmp/lock",
    "dvc.lock",
)
KEPT = (
    "params.yaml",
    "dvc.yaml",
    "flows/clean.py",
    "pictures/cat.png",
    ".venv/bin/python",
    ".dvc/config",
    ".dvc/remote/files/md5/ab/cd",
    "notes.txt",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project after a run, with the user's own files."""
    root = tmp_path / "project"
    for name in (*MADE, *KEPT):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    set_params(root, "pictures")
    return root


def set_params(root: Path, pictures: str) -> None:
    """Params with the user's own pictures at a path."""
    values = read_yaml(PROJECT / "params.yaml")
    values["shard"]["path"] = pictures
    (root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def files_of(root: Path) -> set[str]:
    """The files below a folder."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def answer(text: str) -> Callable[[str], str]:
    """A person who answers every question with `text`."""
    return lambda _question: text


def test_what_runs_have_made_goes_and_all_else_stays(project: Path) -> None:
    clean(project, ask=False)
    assert files_of(project) == set(KEPT)


def test_it_says_what_goes_and_asks_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "outputs" / "large").write_bytes(bytes(2_500_000))
    monkeypatch.setattr("builtins.input", answer("n"))
    clean(project)
    assert files_of(project) == {*MADE, *KEPT, "outputs/large"}
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert set(lines) == {
        *("outputs", "results", "runs", ".sana15", "mlflow.db", "mlflow.db-wal", "mlartifacts", "mlruns", ".prefect"),
        *(".dvc/cache", ".dvc/tmp", "dvc.lock"),
    }
    assert "2.5 MB" in lines["outputs"] and "your pictures" in said and "nothing was deleted" in said
    monkeypatch.setattr("builtins.input", answer("y"))
    clean(project)
    assert files_of(project) == set(KEPT)
    capsys.readouterr()
    clean(project)
    assert capsys.readouterr().out == "there is nothing to delete\n"
    assert files_of(project) == set(KEPT)


@pytest.mark.parametrize("workspace", ["", "runs/smoke", "runs/points/ab12"])
def test_checkpoints_are_named_where_they_lie(project: Path, workspace: str) -> None:
    for path in project.glob(".sana15/state/*"):
        shutil.rmtree(path)
    assert not [one for one in found_in(project) if "checkpoints" in one.meaning]
    (project / workspace / ".sana15/state/train/12ab").mkdir(parents=True)
    named = [one.path.name for one in found_in(project) if "checkpoints to resume from" in one.meaning]
    assert named == ["runs" if workspace else ".sana15"]


def test_links_go_and_what_they_lead_to_stays(project: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for name in ("cache/a", "shards/b"):
        (disk / name).parent.mkdir(parents=True)
        (disk / name).write_text(name)
    (project / ".dvc" / "cache").rename(tmp_path / "moved")
    (project / ".dvc" / "cache").symlink_to(disk / "cache")
    (project / "outputs" / "shards").symlink_to(disk / "shards")
    assert next(one.size for one in found_in(project) if one.path.name == "cache") == 0
    clean(project, ask=False)
    assert files_of(project) == set(KEPT) and files_of(disk) == {"cache/a", "shards/b"}


def test_a_cache_behind_a_linked_folder_stays(project: Path, tmp_path: Path) -> None:
    (project / ".dvc").rename(tmp_path / "dvc")
    (project / ".dvc").symlink_to(tmp_path / "dvc")
    clean(project, ask=False)
    assert (tmp_path / "dvc/cache/files/md5/ab/cd").exists() and not (project / "outputs").exists()


def test_pins_that_git_tracks_stay(project: Path) -> None:
    for command in (("init", "-q"), ("add", "dvc.lock")):
        subprocess.run(["git", *command], cwd=project, check=True)
    clean(project, ask=False)
    assert (project / "dvc.lock").exists() and not (project / "outputs").exists()


@pytest.mark.parametrize(
    "lock",
    [
        ".sana15/flow.lock",
        ".sana15/locks/train",
        ".sana15/sweeps/prune-depth.lock",
        "runs/smoke/.sana15/flow.lock",
        "runs/smoke/.sana15/locks/evaluate@grown",
        f"runs/points/ab12/{POINT_LOCK}",
    ],
)
def test_it_refuses_while_something_runs(project: Path, lock: str) -> None:
    program = (
        "import sys, pathlib; from tasks.system.file_locks import exclusive_lock\n"
        "with exclusive_lock(pathlib.Path(sys.argv[1]), ''): print(flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", program, str(project / lock)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as runner:
        assert runner.stdout is not None and runner.stdout.readline() == "\n"
        with pytest.raises(UserError, match=f"{lock} is held by process {runner.pid}: wait for it, or stop it"):
            clean(project, ask=False)
        assert {*MADE, *KEPT} <= files_of(project)
        runner.communicate()
    clean(project, ask=False)
    assert files_of(project) == set(KEPT)


def test_it_refuses_while_a_server_is_up(project: Path) -> None:
    this = psutil.Process()
    folder = project / SERVERS_FOLDER
    folder.mkdir(parents=True)
    (folder / "mlflow.pid").write_text(f"{this.pid} {this.create_time()}")
    with pytest.raises(UserError, match=rf"the server mlflow is up \(process {this.pid}\): run make down"):
        clean(project, ask=False)
    assert {*MADE, *KEPT} <= files_of(project)
    (folder / "mlflow.pid").write_text(f"{this.pid} {this.create_time() - 5}")  # another process had this pid then
    clean(project, ask=False)
    assert files_of(project) == set(KEPT)


@pytest.mark.parametrize("absolute", [False, True])
def test_own_pictures_among_the_outputs_are_not_deleted(project: Path, absolute: bool) -> None:
    inside = "results/pictures"
    set_params(project, str(project / inside) if absolute else inside)
    with pytest.raises(UserError, match=r"shard\.path in params\.yaml is .*lies in results: move it out first"):
        clean(project, ask=False)
    assert files_of(project) == {*MADE, *KEPT}


def test_a_copy_and_a_folder_that_is_no_project_are_refused(project: Path, tmp_path: Path) -> None:
    (project / "runs/smoke/dvc.yaml").write_text("")
    for folder in (project / "runs/smoke", tmp_path):
        with pytest.raises(UserError, match="is not the main folder of a project"):
            clean(folder, ask=False)
    assert {*MADE, *KEPT} <= files_of(project)


def test_without_a_person_nothing_is_deleted(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(_question: str) -> str:
        raise EOFError

    monkeypatch.chdir(project)
    monkeypatch.setattr("builtins.input", nobody)
    assert main([]) == 2
    assert "python -m flows.clean --yes" in capsys.readouterr().err
    assert files_of(project) == {*MADE, *KEPT}
    assert main(["--yes"]) == 0
    assert files_of(project) == set(KEPT)


def test_a_file_that_is_linked_twice_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    seen: set[tuple[int, int]] = set()
    assert size_of(tmp_path, seen) == 1000 and size_of(tmp_path / "b", seen) == 0


@pytest.mark.parametrize(("size", "words"), [(12, "12 bytes"), (1500, "1.5 kB"), (3 * 10**9, "3.0 GB")])
def test_sizes_are_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


def test_a_run_that_begins_after_the_question_is_not_disturbed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holding = exclusive_lock(project / ".sana15/flow.lock", "")

    def begin_a_run(_question: str) -> str:
        holding.__enter__()
        return "y"

    monkeypatch.setattr("builtins.input", begin_a_run)
    with pytest.raises(UserError, match="is in use by process"):
        clean(project)
    holding.__exit__(None, None, None)
    assert {*MADE, *KEPT} <= files_of(project)
