"""When a stage is built and when it is cached, where it reads files that DVC does not see."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from PIL import Image

from flows.building.child_processes import ChildFailed
from flows.building.dvc_lock import DvcLock
from flows.building.stage_builder import BuiltStage, open_builder
from tasks import stages
from tasks.params.user_files import listing_digest, own_path
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR, write_params

DVC_YAML = """
stages:
  shard:
    cmd: python -m tasks.shard
    params: [compute.seed, shard]
    outs: [outputs/shards]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of stage `shard` alone, on a folder of pictures outside it."""
    root, pictures = tmp_path / "project", tmp_path / "pictures"
    root.mkdir()
    pictures.mkdir()
    for number in range(4):
        draw(pictures, number, "red")
    monkeypatch.chdir(root)
    monkeypatch.setattr(stages, "TABLE", [row for row in stages.TABLE if row.stem == "shard"])
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    write_params(root, PUBLISHED_DETECTOR | {"shard.source": "folder", "shard.path": str(pictures)})
    (root / "dvc.yaml").write_text(DVC_YAML)
    Repo.init(str(root), no_scm=True).close()
    yield root


def draw(folder: Path, number: int, colour: str) -> None:
    """One picture with its caption."""
    Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text("a photo of a wall")


def build(root: Path) -> BuiltStage:
    with open_builder(root, "test", {}) as opened:
        return opened.build("shard", print)


def test_own_pictures_are_sharded_again_when_one_of_them_changes_and_only_then(project: Path) -> None:
    first = build(project)
    assert not first.cached and build(project).cached
    shutil.rmtree(project / "outputs")
    assert build(project).cached  # out of DVC's cache
    draw(project.parent / "pictures", 2, "blue")
    changed = build(project)
    assert not changed.cached and changed.outputs != first.outputs
    assert build(project).cached


def test_a_listing_tells_every_change_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    draw(folder / "below", 0, "red")
    seen = [listing_digest(folder)]
    assert listing_digest(folder) == seen[0]

    def changed() -> bool:
        seen.append(listing_digest(folder))
        return seen[-1] not in seen[:-1]

    caption = folder / "below" / "0.txt"
    caption.write_text("another")
    assert changed()
    os.utime(caption, ns=(0, 0))
    assert changed()
    caption.rename(folder / "0.txt")
    assert changed()
    (folder / "gone.png").symlink_to("nowhere")
    assert changed()
    (folder / "0.txt").unlink()
    assert changed()
    assert listing_digest(tmp_path / "missing") != seen[-1]


def test_a_relative_path_starts_at_the_project_also_in_a_copy_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project / "runs" / "smoke"
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(project / name, copy / name)
    monkeypatch.chdir(copy)
    assert own_path("data") == project.resolve() / "data"
    assert own_path(str(project.parent / "pictures")) == project.parent / "pictures"


@pytest.mark.parametrize(("step", "is_kept"), [("commit", True), ("restore", False)])
def test_a_flow_that_stops_leaves_no_stage_half_done_and_pins_what_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch, step: str, is_kept: bool
) -> None:
    begun, failures, over = threading.Event(), [], []
    with open_builder(project, "test", {}) as opened:
        taken = getattr(opened.dvc_lock, step)

        def late(*given: Any) -> Any:
            begun.set()
            time.sleep(0.5)
            try:
                return taken(*given)
            finally:
                over.append(step)

        def build() -> None:
            try:
                opened.build("shard", print)
            except ChildFailed as failure:
                failures.append(str(failure))

        monkeypatch.setattr(opened.dvc_lock, step, late)
        building = threading.Thread(target=build)
        building.start()
        assert begun.wait(PATIENCE_SECONDS)
    assert over == [step]  # before the folder was left
    building.join()
    assert DvcLock(project, opened.dvc_lock.stages).up_to_date("shard") == is_kept
    assert failures == ([] if is_kept else ["stopped before it began"])
    with pytest.raises(ChildFailed, match="stopped before it began"):
        opened.build("shard", print)
