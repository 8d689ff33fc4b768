"""The cascade: a model that was trained at one size of pictures goes on at twice the side, in another workspace."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tasks.params.params_files import load_params
from tasks.runtime.stage_run import run_stage
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.files import read_json
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE
from tests.helpers.small_workspace import write_params

SMALL: dict[str, Any] = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "compute.threads": 1,
    "shard.train_samples": 512,
    "shard.heldout_samples": 128,
    "autoencoder.latent_channels": 4,
    "autoencoder.block_channels": [16, 16, 32],
    "autoencoder.steps": 60,
    "text_encoder.hidden_size": 32,
    "text_encoder.layers": 1,
    "text_encoder.heads": 2,
    "text_encoder.steps": 20,
    "network.hidden_size": 64,
    "network.linear_head_dim": 16,
    "network.cross_heads": 2,
    "pretrain.depth": 2,
    "pretrain.batch_size": 16,
    "pretrain.evaluate_every": 1000,
    "pretrain.ema_decay": 0.9,
}
STAGES = ("shard", "autoencoder", "text_encoder", "encode", "pretrain")


def walk(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> dict[str, float]:
    """The metrics of the small model of a new workspace, whose stages up to it are run."""
    folder.mkdir()
    write_params(folder, SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    with chdir(folder):
        spool = open_spool(SPOOLS, "test", tags={})
        monkeypatch.setenv(SPOOL_VARIABLE, str(spool.path))
        params = load_params()
        for stage in STAGES:
            run_stage(stage_of(stage, params), params)
        spool.close()
        return read_json(paths.SMALL / "metrics.json")


def test_a_model_of_32_pixels_that_goes_on_at_64_is_ahead_of_one_that_begins_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"pretrain__optimizer": "adamw", "pretrain__warmup_steps": 5, "pretrain__learning_rate": 1e-3}
    first = tmp_path / "32"
    walk(first, monkeypatch, shard__image_size=32, pretrain__steps=120, **trained)
    encoders = {
        "autoencoder__path": str(first / paths.AUTOENCODER),
        "text_encoder__path": str(first / paths.TEXT_ENCODER),
    }
    short = {"shard__image_size": 64, "pretrain__steps": 40, **trained, **encoders}
    begun = walk(tmp_path / "begun", monkeypatch, **short)
    continued = walk(tmp_path / "continued", monkeypatch, pretrain__path=str(first / paths.SMALL), **short)
    for name in ("heldout_loss_before", "heldout_loss"):
        assert continued[name] < 0.9 * begun[name], name
    assert continued["heldout_loss"] < continued["heldout_loss_before"]
    start = read_json(tmp_path / "continued" / paths.START)
    assert start["path"] == str(first / paths.SMALL) and not start["qk_norm_added"]
