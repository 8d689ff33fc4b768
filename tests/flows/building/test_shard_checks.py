"""What the scorer will ask of the captions is asked right behind the shards, before any training."""

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
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.shard import write_own_pictures
from tasks.stages import stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.small_workspace import PROJECT

FOLDER = {"shard.source": "folder", "shard.path": "pictures", "shard.image_size": 64}
SAID = (
    r"^outputs/shards has 1 different captions in the split train: evaluation\.scorer matching needs at least 4; "
    r"caption the pictures differently, or run with --until finetune, which scores none$"
)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_shards(captions: int) -> Params:
    """Shards of 20 pictures with so many different captions; returns the params."""
    params = build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), FOLDER, "test"), "test")
    Path("pictures").mkdir()
    for number in range(20):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"a picture {number % captions}")
    paths.SHARDS.mkdir(parents=True)
    write_own_pictures(paths.SHARDS, params.shard, folder_candidates(Path("pictures")))
    return params


def test_one_caption_for_all_is_refused_as_soon_as_there_are_shards() -> None:
    params = write_shards(1)
    with pytest.raises(UserError, match=SAID):
        refuse_unfit_shards(stages_of(params), params)


def test_the_advice_can_be_followed() -> None:
    params = write_shards(1)
    refuse_unfit_shards(["shard", "encode", "pretrain", "finetune@6"], params)


def test_captions_that_differ_are_enough() -> None:
    params = write_shards(20)
    refuse_unfit_shards(stages_of(params), params)


def test_the_scorer_geneval_asks_nothing_of_captions() -> None:
    params = write_shards(1)
    geneval = replace(
        params.geneval, detector="mask2former", mask2former_path="a", clip_path="b", prompts="prompts.jsonl"
    )
    refuse_unfit_shards(stages_of(params), replace(params, geneval=geneval))


def test_the_flows_stage_shard_fails_of_it_and_no_other_stage_does(monkeypatch: pytest.MonkeyPatch) -> None:
    params = write_shards(1)
    monkeypatch.setattr(stage_retry, "get_run_logger", lambda: logging.getLogger("test"))
    built = BuiltStage("shard", {}, False, 1.0)
    builder: Any = SimpleNamespace(build=lambda _name, _log: built, params=params)
    progress: Any = SimpleNamespace(advance=lambda: None)
    with pytest.raises(UserError, match=SAID):
        stage_retry.stage_task(builder, "shard", progress, stages_of(params)).fn()
    assert stage_retry.stage_task(builder, "encode", progress, stages_of(params)).fn()["stage"] == "shard"
