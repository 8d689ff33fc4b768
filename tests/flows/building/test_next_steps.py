"""After a run that was asked to stop, its last lines name the models that are there and commands that can follow."""

import shlex
from pathlib import Path

import pytest

from flows.building.next_steps import next_steps
from flows.full_pipeline import parse_override
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.stages import stages_of
from tests.helpers.small_workspace import PROJECT


@pytest.fixture
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


def write_outputs(root: Path, params: Params, *stages: str) -> None:
    for name in stages:
        (root / stages_of(params)[name].output).mkdir(parents=True)


def test_models_are_named_in_order_and_no_other_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = ("shard", "autoencoder", "pretrain", "grow", "train", "prune@6")
    write_outputs(tmp_path, params, *stages)
    assert next_steps(tmp_path, stages, params, None, {}) == [
        "models: outputs/small, outputs/grown, outputs/pruned-6",
        "to draw: python -m tasks.generate 'your prompt' --model outputs/pruned-6 --n 1",
        "to run the other stages: python -m flows.full_pipeline",
    ]


def test_a_model_of_an_earlier_run_is_not_taken_for_one_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outputs(tmp_path, params, "shard", "pretrain", "train")
    assert next_steps(tmp_path, ["shard", "pretrain"], params, None, {})[0] == "models: outputs/small"


def test_the_command_for_the_rest_has_the_same_profile_and_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = {"finetune.steps": 50, "shard.path": "my pictures", "judge.path": None, "prune.depths": [3, 2]}
    overrides |= {"shard.source": "folder", "text_encoder.path": "12", "network.mlp_ratio": 2.5, "workflow.x": True}
    models, go_on = next_steps(tmp_path / "runs/smoke", ["shard"], params, "smoke", overrides)
    assert models == "models: none yet"
    words = shlex.split(go_on.removeprefix("to run the other stages: "))
    assert words[:5] == ["python", "-m", "flows.full_pipeline", "--profile", "smoke"]
    assert words[5::2] == ["-p"] * len(overrides)
    assert dict(parse_override(word) for word in words[6::2]) == overrides
    assert "shard.source=folder" in words
