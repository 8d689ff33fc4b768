"""A change of one's own files is noticed, and a flow that stops leaves no stage half done."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.building.child_processes import ChildFailed
from flows.building.dvc_lock import DvcLock
from flows.building.stage_builder import open_builder
from tasks.params.user_files import listing_digest, own_path
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.pictures_project import draw, write_pictures_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_pictures_project(tmp_path, monkeypatch)


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
