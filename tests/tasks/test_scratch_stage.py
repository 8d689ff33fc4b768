"""Stage `scratch@D` trains a deep network from random weights that are its own."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_network
from tasks.params.params_files import load_params
from tasks.stages import stage_of
from tests.helpers.drawing_workspace import all_bytes, run
from tests.helpers.small_workspace import write_encoded, write_params

SHORT = {"steps": 30, "batch_size": 8, "warmup_steps": 0, "optimizer": "adamw", "evaluate_every": 30}
CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "network.hidden_size": 32,
    "network.cross_heads": 2,
    "pretrain.depth": 3,
    "grow.depth": 3,
    "prune.depths": [2],
    "scratch.depths": [3, 2],
    **{f"{section}.{key}": value for section in ("scratch", "pretrain") for key, value in SHORT.items()},
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=37)


def train(stem: str, out: str, item: int | None = None, **changes: object) -> tuple[dict[str, float], Path]:
    write_params(Path.cwd(), CHANGES | {name.replace("__", "."): value for name, value in changes.items()})
    params = load_params()
    state = Path("state")
    state.rename(f"state of before {out}") if state.exists() else None
    return run(stage_of(stem, params, item), params, Path(out))


def test_it_learns_and_gives_the_same_bytes_again() -> None:
    metrics, out = train("scratch", "once", 3)
    assert metrics["heldout_loss"] < metrics["heldout_loss_before"]
    assert load_network(out).config.depth == metrics["depth"] == 3
    assert all_bytes(train("scratch", "again", 3)[1]) == all_bytes(out)


def test_it_starts_from_other_weights_than_the_small_model_of_the_same_shape() -> None:
    networks = [
        load_network(train(stem, stem, item, pretrain__ema_decay=0.0, scratch__ema_decay=0.0, **still)[1])
        for stem, item in (("scratch", 3), ("pretrain", None))
        for still in [{"pretrain__learning_rate": 1e-30, "scratch__learning_rate": 1e-30}]
    ]
    scratch, small = (network.blocks[0].attn.qkv.weight for network in networks)
    assert scratch.shape == small.shape and not torch.equal(scratch, small)
    torch.testing.assert_close(scratch.std(), small.std(), rtol=0.1, atol=0)
