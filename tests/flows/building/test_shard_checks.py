"""What the judge will ask of the shards is asked right behind them, before any training."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.building import stage_retry
from flows.building.shard_checks import refuse_unfit_shards
from flows.building.stage_builder import BuiltStage
from tasks.data.sources.picture_folder import folder_candidates
from tasks.judge import shard_pictures
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.shard import write_own_pictures
from tasks.stages import stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR

WIDE, SQUARE = (30, 90), (64, 64)
FOLDER = {"shard.source": "folder", "shard.path": "pictures", "shard.image_size": 64}
SAID = (
    r"^outputs/shards has no training pictures of 64x64, .* up to 3000: set judge\.shard_pictures to 0 in "
    r"params\.yaml, or shard\.aspect_buckets to false$"
)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_shards(size: tuple[int, int], **changes: Any) -> Params:
    """Shards of pictures that all have this height and width; returns the params."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), PUBLISHED_DETECTOR | FOLDER | changed, "test")
    params = build_params(values, "test")
    Path("pictures").mkdir()
    for number in range(4):
        Image.fromarray(np.full((*size, 3), number, np.uint8)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text("a picture")
    paths.SHARDS.mkdir(parents=True)
    write_own_pictures(paths.SHARDS, params.shard, folder_candidates(Path("pictures")))
    return params


def test_the_judges_square_pictures_are_missed_as_soon_as_there_are_shards() -> None:
    params = write_shards(WIDE, shard__aspect_buckets=True)
    with pytest.raises(UserError, match=SAID):
        refuse_unfit_shards(stages_of(params), params)
    with pytest.raises(UserError, match=r"set judge\.shard_pictures to 0"):  # as the judge itself would say later
        shard_pictures(params.judge.shard_pictures, params.shard.image_size, seed=0)


def test_the_advice_can_be_followed() -> None:
    params = write_shards(WIDE, shard__aspect_buckets=True, judge__shard_pictures=0)
    refuse_unfit_shards(stages_of(params), params)


@pytest.mark.parametrize(("size", "buckets"), [(SQUARE, True), (WIDE, False)])
def test_square_pictures_are_found(size: tuple[int, int], buckets: bool) -> None:
    params = write_shards(size, shard__aspect_buckets=buckets)
    refuse_unfit_shards(stages_of(params), params)
    assert len(shard_pictures(params.judge.shard_pictures, params.shard.image_size, seed=0))


def test_who_makes_no_judge_or_asks_a_published_one_is_asked_for_none() -> None:
    params = write_shards(WIDE, shard__aspect_buckets=True)
    refuse_unfit_shards(["shard", "encode", "pretrain"], params)
    published = replace(params, judge=replace(params.judge, kind="vision_language", path="judge"))
    refuse_unfit_shards(stages_of(published), published)


def test_the_flows_stage_shard_fails_of_it_and_no_other_stage_does(monkeypatch: pytest.MonkeyPatch) -> None:
    params = write_shards(WIDE, shard__aspect_buckets=True)
    monkeypatch.setattr(stage_retry, "get_run_logger", lambda: logging.getLogger("test"))
    built = BuiltStage("shard", {}, False, 1.0)
    builder: Any = SimpleNamespace(build=lambda _name, _log: built, params=params)
    progress: Any = SimpleNamespace(advance=lambda: None)
    with pytest.raises(UserError, match=SAID):
        stage_retry.stage_task(builder, "shard", progress, stages_of(params)).fn()
    assert stage_retry.stage_task(builder, "encode", progress, stages_of(params)).fn()["stage"] == "shard"
