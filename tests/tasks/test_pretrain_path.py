"""Stage `pretrain` starts from published weights; what does not fit the experiment is listed in one line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_network
from model.network import Sana
from model.weights.diffusers_pipeline import to_transformer
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.published_files import content_digest
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.heldout_loss import heldout_loss
from tests.helpers.drawing_workspace import run
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params

CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "network.hidden_size": 16,
    "network.linear_head_dim": 8,
    "network.cross_heads": 2,
    "pretrain.path": "published",
    "pretrain.depth": 3,
    "pretrain.steps": 0,
    "pretrain.warmup_steps": 0,
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with encoded data."""
    write_encoded(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def params(**changes: object) -> Params:
    write_params(Path(), CHANGES | {name.replace("__", "."): value for name, value in changes.items()})
    return load_params()


@pytest.mark.parametrize("kind", ["diffusers folder", "published file"])
def test_published_weights_become_the_small_model(workspace: Path, kind: str) -> None:
    network = small_network(3)
    path = "published" if kind == "diffusers folder" else "published.pth"
    if kind == "diffusers folder":
        to_transformer(network, 4).save_pretrained(path)
    else:
        torch.save({"state_dict": network.state_dict()}, path)
    chosen = params(pretrain__path=path)
    metrics, out = run(stage_of("pretrain", chosen), chosen)
    taken, state = load_network(out), network.state_dict()
    assert taken.config == network.config
    assert all(torch.equal(tensor, state[name]) for name, tensor in taken.state_dict().items())
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    assert metrics["heldout_loss"] == heldout_loss(network, heldout, chosen.diffusion, 0, "cpu", "float32").value
    assert (metrics["depth"], metrics["parameters"]) == (3, sum(tensor.numel() for tensor in state.values()))


def test_every_difference_from_the_experiment_is_listed_in_one_line(workspace: Path) -> None:
    to_transformer(small_network(2), 4).save_pretrained("published")
    chosen = params(network__hidden_size=32, network__qk_norm=False)
    with pytest.raises(UserError) as error:
        run(stage_of("pretrain", chosen), chosen)
    differing = "network.hidden_size 16, not 32; pretrain.depth 2, not 3; network.qk_norm True, not False"
    assert f"published has {differing}: set these" in str(error.value) and "\n" not in str(error.value)


def test_published_weights_are_trained_on(workspace: Path) -> None:
    network = small_network(3)
    to_transformer(network, 4).save_pretrained("published")
    chosen = params(pretrain__steps=2, pretrain__batch_size=4, pretrain__learning_rate=0.1)
    metrics, out = run(stage_of("pretrain", chosen), chosen)
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    assert metrics["heldout_loss_before"] == heldout_loss(network, heldout, chosen.diffusion, 0, "cpu", "float32").value
    before, after = network.state_dict(), load_network(out).state_dict()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_qk_norm_is_added_to_weights_that_have_none(workspace: Path) -> None:
    plain = Sana(replace(small_network(3).config, qk_norm=False))
    torch.save({"state_dict": plain.state_dict()}, "plain.pth")
    chosen = params(pretrain__path="plain.pth")
    _, out = run(stage_of("pretrain", chosen), chosen)
    taken, state = load_network(out), plain.state_dict()
    assert taken.config == replace(plain.config, qk_norm=True)
    added = {name: tensor for name, tensor in taken.state_dict().items() if name not in state}
    assert len(added) == 4 * 3 and all((tensor == 1).all() for tensor in added.values())
    assert all(torch.equal(tensor, taken.state_dict()[name]) for name, tensor in state.items())


def test_the_average_of_a_published_checkpoint_is_taken_where_params_say_so(workspace: Path) -> None:
    last, average = small_network(3, seed=1), small_network(3, seed=2)
    torch.save({"state_dict": last.state_dict(), "state_dict_ema": average.state_dict()}, "both.pth")
    chosen = params(pretrain__path="both.pth", pretrain__checkpoint_key="state_dict_ema")
    _, out = run(stage_of("pretrain", chosen), chosen)
    assert all(
        torch.equal(tensor, average.state_dict()[name]) for name, tensor in load_network(out).state_dict().items()
    )
    start = json.loads((out / "start.json").read_text())
    assert start == {"path": "both.pth", "sha256": content_digest(Path("both.pth")), "qk_norm_added": False}


def test_a_folder_without_weights_is_named(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: pretrain\.path: [^\n]*published[^\n]*$"):
        run(stage_of("pretrain", params()), params())
