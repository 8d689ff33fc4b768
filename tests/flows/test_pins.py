"""What the flow asks of DVC, on a real project of two stages."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.pins import Pins
from tasks.errors import UserError

DVC_YAML = """
stages:
  first:
    cmd: mkdir -p outputs/first && cp params.yaml outputs/first/copy
    params: [one]
    deps: [code]
    outs: [outputs/first]
  second:
    cmd: mkdir -p outputs/second && cat outputs/first/copy params.yaml > outputs/second/both
    params: [two]
    deps: [outputs/first]
    outs: [outputs/second]
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    with chdir(new_project(tmp_path / "project")) as _:
        yield tmp_path / "project"


def new_project(root: Path) -> Path:
    root.mkdir()
    with chdir(root):
        Repo.init(str(root), no_scm=True).close()
        (root / "dvc.yaml").write_text(DVC_YAML)
        (root / "code").write_text("1")
        set_params(1, 1)
    return root


def set_params(one: int, two: int) -> None:
    Path("params.yaml").write_text(json.dumps({"one": one, "two": two}))


def build(root: Path) -> dict[str, str]:
    """Bring every stage up to date as the flow does; says what that took for each."""
    pins, took = Pins(root), {}
    for name in ("first", "second"):
        if pins.up_to_date(name):
            took[name] = "cached"
        elif pins.restore(name):
            took[name] = "restored"
        else:
            subprocess.run(pins.stages[name].command, shell=True, check=True, cwd=root)
            pins.pin(name)
            took[name] = "ran"
    return took


def status(root: Path) -> dict:
    with Repo(str(root), config={"core": {"no_scm": True}}) as repo:
        return repo.status()


def test_what_was_built_is_pinned_and_then_up_to_date(project: Path) -> None:
    assert build(project) == {"first": "ran", "second": "ran"}
    assert status(project) == {}
    assert build(project) == {"first": "cached", "second": "cached"}


def test_a_changed_param_runs_only_the_stages_behind_it(project: Path) -> None:
    build(project)
    set_params(1, 2)
    assert build(project) == {"first": "cached", "second": "ran"}


def test_a_stage_that_writes_the_same_bytes_again_stops_the_rebuilding(project: Path) -> None:
    build(project)
    (project / "code").write_text("2")
    assert build(project) == {"first": "ran", "second": "cached"}


def test_going_back_to_earlier_params_takes_the_outputs_out_of_the_cache(project: Path) -> None:
    build(project)
    before = (project / "outputs/second/both").read_bytes()
    set_params(1, 2)
    build(project)
    set_params(1, 1)
    assert build(project) == {"first": "cached", "second": "restored"}
    assert (project / "outputs/second/both").read_bytes() == before
    assert status(project) == {}


def test_deleted_outputs_come_back_from_the_cache(project: Path) -> None:
    build(project)
    shutil.rmtree(project / "outputs")
    assert build(project) == {"first": "restored", "second": "restored"}


def test_a_lock_file_without_its_cache_does_not_stop_a_fresh_clone(project: Path) -> None:
    build(project)
    shutil.rmtree(project / "outputs")
    shutil.rmtree(project / ".dvc" / "cache")
    assert build(project) == {"first": "ran", "second": "ran"}
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
        Pins(project)
    assert "\n" not in str(error.value)
