"""The stages score own pictures by `matching`: prompts, ceiling, floor, judge, evaluation and controls."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from tasks.data.picture_dataset import PictureDataset
from tasks.evaluation.matching.caption_pairs import half_of
from tasks.evaluation.picture_features import LATENTS
from tasks.evaluation.picture_pool import load_pool
from tasks.evaluation.prompts.evaluation_prompts import read_prompts
from tasks.evaluation.scorers.scorer_choice import PROMPTS, REAL_FEATURES
from tasks.params.experiment_params import Params
from tasks.stages import stage_of
from tasks.system import paths
from tests.helpers.drawing_workspace import all_bytes, run, write_shards, write_workspace


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace whose scorer is `matching`. Its pictures are scenes, whose captions serve as any others."""
    monkeypatch.chdir(tmp_path)
    params = write_workspace()
    rmtree(paths.SHARDS)
    write_shards(params, train=60, heldout=12)
    chosen = replace(params.matching, captions=8, choices=4, steps=3, batch_size=8)
    params = replace(params, evaluation=replace(params.evaluation, scorer="matching"), matching=chosen)
    rmtree(paths.SCORER)
    run(stage_of("scorer", params), params)
    yield params


def test_the_prompts_are_held_out_captions_and_the_features_those_of_real_pictures(params: Params) -> None:
    heldout = PictureDataset(paths.SHARDS, "heldout")
    prompts = read_prompts(paths.SCORER / PROMPTS)
    assert 2 <= len(prompts) <= 8 and {prompt.text for prompt in prompts} <= set(heldout.captions)
    assert all(set(prompt.line["others"]) <= set(heldout.captions) for prompt in prompts)
    assert len(np.load(paths.SCORER / REAL_FEATURES)) == 12


def test_the_summary_has_a_ceiling_a_floor_and_says_that_it_is_not_geneval(params: Params) -> None:
    summary = json.loads((paths.SCORER / "summary.json").read_text())
    assert summary["scorer"] == "matching" and "This is not GenEval" in summary["note"]
    assert summary["chance"] == 1 / 4 and summary["features"] == LATENTS
    for name in ("ceiling", "shuffled"):
        assert 0 <= summary[name]["low"] <= summary[name]["overall"] <= summary[name]["high"] <= 1


def test_a_model_is_scored_by_the_verdicts_of_its_pool_under_the_scorers_name(params: Params) -> None:
    metrics, out = run(stage_of("evaluate", params, "small"), params)
    pool = load_pool(out)
    assert set(pool.tasks) == {"matching"} and pool.seen == [None] * len(pool.prompts)
    assert metrics["matching/overall"] == pytest.approx(pool.correct_PN.mean())
    assert not any("geneval" in name for name in metrics)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["distance"]["low"] <= summary["distance"]["value"] <= summary["distance"]["high"]
    again = all_bytes(run(stage_of("evaluate", params, "small"), params, Path("again"))[1])
    assert again == all_bytes(out)


def test_the_judge_is_trained_on_its_own_half_and_calibrated_on_the_other(params: Params) -> None:
    metrics, out = run(stage_of("judge", params), params, Path("judge"))
    assert (out / "model.safetensors").is_file() and "yes_share" not in metrics
    assert 0 <= metrics["unseen_yes_share"] <= 1
    captions = set(PictureDataset(paths.SHARDS, "train").captions)
    halves = [{text for text in captions if half_of(text, params.compute.seed) == half} for half in ("scorer", "judge")]
    assert all(halves) and not set.intersection(*halves)


def test_judge_and_scorer_have_different_weights(params: Params) -> None:
    _, out = run(stage_of("judge", params), params, Path("judge"))
    assert (out / "model.safetensors").read_bytes() != (paths.SCORER / "model.safetensors").read_bytes()


def test_controls_are_scored_by_matching_too(params: Params) -> None:
    metrics, out = run(stage_of("controls", params), params)
    assert set(metrics) == {"noise", "untrained", "random-2"}
    assert list(json.loads((out / "summary.json").read_text())["noise"]["tasks"]) == ["matching"]
