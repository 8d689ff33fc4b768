"""A stage that reads one's own pictures is built again when one of them changes, and only then."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.pictures_project import build, draw, write_pictures_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_pictures_project(tmp_path, monkeypatch)


def test_own_pictures_are_sharded_again_when_one_of_them_changes_and_only_then(project: Path) -> None:
    first = build(project)
    assert not first.cached and build(project).cached
    shutil.rmtree(project / "outputs")
    assert build(project).cached  # out of DVC's cache
    draw(project.parent / "pictures", 2, "blue")
    changed = build(project)
    assert not changed.cached and changed.outputs != first.outputs
    assert build(project).cached
