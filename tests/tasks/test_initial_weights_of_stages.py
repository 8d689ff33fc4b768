"""Claims about `network.initialisation`: the paper's profiles choose published, and training starts from it."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_network
from tasks.params.params_files import apply_profile, build_params, load_params, read_yaml
from tasks.stages import stage_of
from tests.helpers.drawing_workspace import run
from tests.helpers.project_folder import PROJECT
from tests.helpers.small_workspace import write_encoded, write_params

START = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "network.hidden_size": 16,
    "network.linear_head_dim": 8,
    "network.cross_heads": 2,
    "pretrain.depth": 2,
    "scratch.depths": [2],
}
MOVES_NOTHING = {"steps": 1, "warmup_steps": 1, "optimizer": "adamw", "learning_rate": 1e-9, "ema_decay": 0.0}


@pytest.mark.parametrize("profile", ["paper", "prune-published", "grow-published"])
def test_the_paper_s_profiles_start_from_the_published_weights(profile: str) -> None:
    default = read_yaml(PROJECT / "params.yaml")
    changed = build_params(apply_profile(default, profile, PROJECT / "profiles"), profile)
    assert changed.network.initialisation == "published"
    assert build_params(default, "params.yaml").network.initialisation == "ours"


@pytest.mark.parametrize(("initialisation", "caption_norm"), [("ours", 1.0), ("published", 0.01)])
@pytest.mark.parametrize(("stem", "item"), [("pretrain", None), ("scratch", 2)])
def test_a_stage_starts_from_the_initial_weights_that_params_ask_for(
    stem: str,
    item: int | None,
    initialisation: str,
    caption_norm: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_encoded(tmp_path)
    monkeypatch.chdir(tmp_path)
    one_step = {f"{stem}.{key}": value for key, value in MOVES_NOTHING.items()}
    write_params(Path(), START | one_step | {"network.initialisation": initialisation})
    chosen = load_params()
    _, folder = run(stage_of(stem, chosen, item), chosen)
    network = load_network(folder)
    torch.testing.assert_close(network.attention_y_norm.weight.data, torch.full((16,), caption_norm), atol=1e-6, rtol=0)
    largest = max(block.cross_attn.proj.weight.abs().max() for block in network.blocks)
    assert (largest > 0.1) == (initialisation == "published")
