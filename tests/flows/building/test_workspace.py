"""Runs with a profile or overrides work in a copy and leave the project alone."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dvc.config import Config

from flows.building.workspace import hold_workspace, open_workspace, run_name
from tasks.params.params_files import load_params, read_yaml
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.paths import PARAMS_ORIGIN

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a tracked file, in git."""
    root = tmp_path / "project"
    (root / "tasks").mkdir(parents=True)
    (root / "tasks" / "a.py").write_text("a = 1\n")
    for name in ("params.yaml", "profiles", ".dvc/config", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, root / name)
    git(root, "init", "-q")
    git(root, "add", "-A")
    return root


def test_a_path_of_any_letters_has_copies_with_its_cache_and_remotes(project: Path) -> None:
    strange = project.parent / "münchen, Übung 1#"
    project.rename(strange)
    remote = f'[\'remote "store"\']\n    url = "{strange / "Übung"}"\n'
    (strange / ".dvc" / "config").write_text(f"[core]\n    remote = store\n{remote}", encoding="utf-8")
    copy = open_workspace(strange, "smoke", {})
    seen = Config(str(copy / ".dvc"), validate=True)
    assert seen["cache"]["dir"] == str(strange / ".dvc" / "cache")
    assert seen["core"]["remote"] == "store" and seen["core"]["no_scm"] is True
    assert seen["remote"]["store"]["url"] == str(strange / "Übung")
    with (copy / ".dvc" / "config.local").open("a", encoding="utf-8") as local:
        local.write("[state]\n    row_limit = 7\n")
    open_workspace(strange, "smoke", {})
    again = Config(str(copy / ".dvc"), validate=True)
    assert again["state"]["row_limit"] == 7 and again["remote"] == seen["remote"] and again["cache"] == seen["cache"]


def test_without_a_git_executable_a_copy_has_the_code(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    copy = open_workspace(project, "smoke", {})
    assert (copy / "tasks" / "a.py").read_text() == "a = 1\n" and (copy / ".dvc" / "config").exists()


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file outside git's own folder and the copies."""
    files = (path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith((".git/", "runs/"))}


def test_without_profile_and_overrides_the_project_itself_is_the_workspace(project: Path) -> None:
    assert open_workspace(project, None, {}) == project
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("profile", "overrides", "steps"),
    [("smoke", {}, None), (None, {"finetune.steps": 57}, 57), ("smoke", {"finetune.steps": 58}, 58)],
)
def test_overrides_work_in_a_copy_and_change_nothing_else(
    project: Path, profile: str | None, overrides: dict[str, Any], steps: int | None
) -> None:
    (project / "outputs").mkdir()
    (project / "outputs" / "weights").write_text("mine")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    before = snapshot(project)
    copy = open_workspace(project, profile, overrides)
    assert snapshot(project) == before
    params = load_params(copy / "params.yaml")
    if profile is not None:
        smoke = read_yaml(project / "profiles" / "smoke.yaml")
        assert params.pretrain.steps == smoke["pretrain"]["steps"]
    if steps is not None:
        assert params.finetune.steps == steps
    assert (copy / "tasks" / "a.py").read_text() == "a = 1\n"
    assert (copy / "dvc.lock").read_text() == "schema: '2.0'\n"
    assert not (copy / "outputs").exists()


def test_the_same_overrides_use_the_same_copy_and_others_another(project: Path) -> None:
    first = open_workspace(project, None, {"finetune.steps": 57})
    assert open_workspace(project, None, {"finetune.steps": 57}) == first
    assert open_workspace(project, None, {"finetune.steps": 58}) != first
    assert open_workspace(project, "smoke", {"finetune.steps": 57}) != first


def test_a_copy_follows_edits_new_files_and_deletions_but_keeps_its_own_state(project: Path) -> None:
    (project / "tasks" / "old.py").write_text("")
    copy = open_workspace(project, "smoke", {})
    (copy / "dvc.lock").write_text("its own")
    (project / "dvc.lock").write_text("the project's")
    (project / "tasks" / "a.py").write_text("a = 2\n")
    (project / "tasks" / "new.py").write_text("")
    (project / "tasks" / "old.py").unlink()
    (project / "mlflow.db").write_text("ignored")
    open_workspace(project, "smoke", {})
    assert (copy / "tasks" / "a.py").read_text() == "a = 2\n"
    assert (copy / "tasks" / "new.py").exists()
    assert not (copy / "tasks" / "old.py").exists()
    assert not (copy / "mlflow.db").exists()
    assert (copy / "dvc.lock").read_text() == "its own"


@pytest.mark.parametrize("in_git", [True, False])
def test_a_copy_takes_uncommitted_code_but_none_of_the_users_folders(project: Path, in_git: bool) -> None:
    new = ("tasks/data/new.py", "profiles/mine.yaml", "notes.md")
    others = ("pictures/cat.jpg", "old/tasks/a.py", "outputs/weights", "tasks/__pycache__/a.pyc")
    for name in (*new, *others):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    if not in_git:
        shutil.rmtree(project / ".git")
    copy = open_workspace(project, "smoke", {})
    assert [name for name in new if not (copy / name).exists()] == []
    assert [name for name in others if (copy / name).exists()] == []


def test_a_project_that_is_not_in_git_is_copied_too(project: Path) -> None:
    shutil.rmtree(project / ".git")
    (project / "outputs").mkdir()
    (project / "outputs" / "weights").write_text("mine")
    copy = open_workspace(project, "smoke", {})
    assert (copy / "tasks" / "a.py").exists()
    assert (copy / ".dvc" / "config").exists()
    assert not (copy / "outputs").exists()


def test_a_copy_shares_the_cache_and_the_remote_of_the_project(project: Path) -> None:
    copy = open_workspace(project, "smoke", {})
    config = Config(str(copy / ".dvc"))
    assert config["cache"]["dir"] == str(project / ".dvc" / "cache")
    assert config["remote"]["local"]["url"] == str(project / ".dvc" / "remote")
    assert config["core"]["no_scm"]


@pytest.mark.parametrize(
    ("profile", "overrides", "said"),
    [
        (None, {"finetune.step": 1}, "finetune.steps"),
        (None, {"finetune.batch_size": 0}, "above 0"),
        ("smok", {}, "smoke"),
    ],
)
def test_bad_overrides_stop_before_anything_is_written(
    project: Path, profile: str | None, overrides: dict[str, Any], said: str
) -> None:
    before = snapshot(project)
    with pytest.raises(UserError, match=said):
        open_workspace(project, profile, overrides)
    assert snapshot(project) == before
    assert not (project / "runs").exists()


def test_one_flow_at_a_time_works_in_a_workspace(tmp_path: Path) -> None:
    with hold_workspace(tmp_path):
        with pytest.raises(UserError, match="in use by process"), hold_workspace(tmp_path):
            pass
    with hold_workspace(tmp_path):
        pass


def test_a_run_is_called_as_its_folder_is_and_a_point_by_its_values(project: Path) -> None:
    for profile, overrides in (("smoke", {}), (None, {"finetune.steps": 90}), ("smoke", {"finetune.steps": 3})):
        folder = open_workspace(project, profile, overrides)
        assert run_name({"profile": profile, "overrides": overrides}) == folder.name
    assert run_name({"profile": None, "overrides": None}) == "default"
    assert run_name({"point": {"key": "0a1b", "name": "prune-depth [3]"}}) == "prune-depth [3]"


@pytest.mark.parametrize(
    ("profile", "overrides", "origin"),
    [
        ("smoke", {}, "smoke"),
        (None, {"finetune.steps": 57}, "default, with finetune.steps=57"),
        ("smoke", {"finetune.steps": 57, "grow.depth": 5}, "smoke, with finetune.steps=57, grow.depth=5"),
    ],
)
def test_a_copy_says_which_profile_and_overrides_its_params_were_made_from(
    project: Path, profile: str | None, overrides: dict[str, Any], origin: str
) -> None:
    assert read_json(open_workspace(project, profile, overrides) / PARAMS_ORIGIN) == {"origin": origin}
