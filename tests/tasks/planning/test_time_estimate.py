"""The estimate follows the counted FLOPs, the measured rate and the order of stages."""

from pathlib import Path

import pytest
import torch

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, apply_profile, build_params, read_yaml
from tasks.planning import time_estimate
from tasks.planning.time_estimate import (
    STAGE_SECONDS,
    duration_text,
    estimate_line,
    has_output,
    makespan,
    matrix_rate,
    stage_seconds,
)
from tasks.stages import stages_of
from tasks.system.manifest import MANIFEST
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR


def params(**overrides: object) -> Params:
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "smoke", PROJECT / "profiles")
    values = apply_overrides(values, {key.replace("__", "."): value for key, value in overrides.items()}, "test")
    return build_params(values, "test")


def test_main_stages_run_one_after_another_and_branch_stages_two_at_once() -> None:
    chosen = params(compute__threads=2)
    stages = stages_of(chosen)
    main = ["shard", "autoencoder", "text_encoder", "encode", "pretrain"]
    assert not any(stages[name].branch for name in main)
    assert makespan(chosen, {name: stages[name] for name in main}, dict.fromkeys(main, 10.0)) == 50
    pair = {name: stages[name] for name in ("evaluate@small", "grow")}
    assert makespan(chosen, pair, dict.fromkeys(pair, 10.0)) == 10
    chain = {name: stages[name] for name in ("grow", "train", "importance", "prune@2", "finetune@2")}
    assert makespan(chosen, chain, dict.fromkeys(chain, 10.0)) == 50
    one_at_once = params(compute__threads=2, workflow__parallel_branches=1)
    assert makespan(one_at_once, pair, dict.fromkeys(pair, 10.0)) == 20


def test_a_stage_takes_its_flops_over_the_rate_of_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 1e9, torch.bfloat16: 4e9}
    monkeypatch.setattr(time_estimate, "matrix_rate", rates.__getitem__)
    once = stage_seconds(params(), None)
    # the held-out loss is taken as often as before, and four times as many updates are made
    four_times = {f"pretrain__{key}": 4 * getattr(params().pretrain, key) for key in ("steps", "evaluate_every")}
    longer = stage_seconds(params(**four_times), None)
    assert once["shard"] == STAGE_SECONDS
    assert 2 < (longer["pretrain"] - STAGE_SECONDS) / (once["pretrain"] - STAGE_SECONDS) < 4
    rates[torch.bfloat16] /= 2
    slower = stage_seconds(params(), None)
    assert slower["pretrain"] - STAGE_SECONDS == pytest.approx(2 * (once["pretrain"] - STAGE_SECONDS))
    assert slower["autoencoder"] == once["autoencoder"]


def test_only_stages_without_an_output_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_estimate, "matrix_rate", lambda _dtype: 1e9)
    stages = stages_of(params())
    assert estimate_line(params(), tmp_path, stages).startswith(f"{len(stages)} of {len(stages)} stages have no output")
    assert estimate_line(params(), tmp_path, ["shard", "encode"]).startswith("2 of 2 stages have no output here yet: ")
    (tmp_path / stages["shard"].output).mkdir(parents=True)
    assert not has_output(stages["shard"], tmp_path)
    for stage in stages.values():
        for path in stage.written:
            target = tmp_path / path / MANIFEST if path == stage.output else tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    assert estimate_line(params(), tmp_path, stages) == ""


@pytest.mark.parametrize(
    ("load", "said"), [(0.4, ""), (3.2, "as other processes would keep 3 CPUs busy and here are 2")]
)
def test_a_busy_machine_is_said_to_take_longer(load: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert time_estimate.load_text().removeprefix("; longer, ") == said


def test_own_pictures_are_counted_and_those_that_cannot_be_are_not_guessed(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "a.txt", "notes.pdf"):
        (tmp_path / name).touch()
    published = {key.replace(".", "__"): value for key, value in PUBLISHED_DETECTOR.items()}
    folder = params(shard__source="folder", shard__path=str(tmp_path), **published)
    assert time_estimate.own_pictures(folder) == 2
    shards = params(shard__source="webdataset", shard__path=str(tmp_path), **published)
    assert estimate_line(shards, tmp_path, ["shard"]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "1 minute"), (100, "2 minutes"), (840, "14 minutes"), (7200, "2 hours"), (864_000, "10 days")],
)
def test_a_duration_is_told_in_the_unit_that_people_would_take(seconds: float, text: str) -> None:
    assert duration_text(seconds) == f"about {text}"


def test_the_rate_of_products_is_measured() -> None:
    assert matrix_rate(torch.float32) > 1e7
