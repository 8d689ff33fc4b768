"""A project of stage `shard` alone, on a folder of pictures outside it."""

from pathlib import Path

import pytest
from dvc.repo import Repo
from PIL import Image

from flows.building.stage_builder import BuiltStage, open_builder
from tasks import stages
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR, write_params

DVC_YAML = """
stages:
  shard:
    cmd: python -m tasks.shard
    params: [compute.seed, shard]
    outs: [outputs/shards]
"""


def write_pictures_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project, which is the working directory; the pictures are in `pictures` beside it."""
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
    return root


def draw(folder: Path, number: int, colour: str) -> None:
    """One picture with its caption."""
    Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text("a photo of a wall")


def build(root: Path) -> BuiltStage:
    with open_builder(root, "test", {}) as opened:
        return opened.build("shard", print)
