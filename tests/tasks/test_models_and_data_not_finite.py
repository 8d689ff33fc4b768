"""A NaN in a model or in held-out data ends every stage that reads it with one line that names the file."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import save_network
from model.network import Sana
from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME, EncodedDataset
from tasks.evaluation.inception_features import InceptionFeatures
from tasks.evaluation.picture_features import read_features
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.heldout_loss import heldout_loss
from tests.helpers.drawing_workspace import run, write_workspace
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.torchscript_network import write_network

RUNS = itertools.count()
CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "pretrain.depth": 2,
    "grow.depth": 3,
    "importance.prompts": 100,
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "prune.depths": [2],
    "prune.random_choices": 2,
    "finetune.teacher": "velocity",
    "sft.models": ["grown"],
    "sft.data": "encoded",
}
READERS = {
    "small": ("grow",),
    "grown": ("importance", "prune@2", "finetune@2", "sft@grown"),
    "grown_init": ("train",),
    "pruned-2": ("finetune@2",),
}
"""The stages that read each network to train or to cut it."""
HELDOUT_READERS = ("pretrain", "grow", "train", "importance", "prune@2")


def stage(name: str, params: Params) -> Any:
    stem, _, item = name.partition("@")
    return stage_of(stem, params, (int(item) if item.isdigit() else item) if item else None)


def one_line(name: str, params: Params) -> str:
    """The line with which a stage ends."""
    with pytest.raises(UserError) as error:
        run(stage(name, params), params, Path("out", str(next(RUNS))))
    assert "\n" not in str(error.value)
    return str(error.value)


def break_weight(file: Path, value: float = math.nan) -> str:
    """Put a number into the last weight of a safetensors file; returns the weight's name."""
    weights = load_file(file)
    name = max(weights)
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace of small networks and encoded data."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, CHANGES)
    write_encoded(tmp_path, train=24)
    for name, depth in (("small", 2), ("grown", 3), ("grown_init", 3), ("pruned-2", 2)):
        folder = paths.model_folder(name)
        folder.mkdir()
        save_network(small_network(depth), folder)
    (paths.model_folder("pruned-2") / "pruning.json").write_text(json.dumps({"kept": [0, 1]}))
    paths.IMPORTANCE.mkdir()
    (paths.IMPORTANCE / "importance.json").write_text(json.dumps({"mean": [0.3, 0.2, 0.1]}))
    yield load_params()


@pytest.mark.parametrize("model", READERS)
def test_a_weight_that_is_not_finite_is_named_by_every_stage_that_trains_or_cuts(networks: Params, model: str) -> None:
    file = paths.model_folder(model) / "model.safetensors"
    name = break_weight(file)
    for reader in READERS[model]:
        assert one_line(reader, networks).startswith(f"{file}: {name} holds numbers that are not finite"), reader


@pytest.fixture
def drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    monkeypatch.chdir(tmp_path)
    yield write_workspace()


def test_a_model_that_is_not_finite_is_named_by_every_stage_that_draws_with_it(drawing: Params) -> None:
    good = {path: path.read_bytes() for path in paths.OUTPUTS.rglob("*.safetensors")}
    readers = {
        paths.SMALL / "model.safetensors": ("judge", "latency", "evaluate@small"),
        paths.GROWN / "model.safetensors": ("controls", "evaluate@grown"),
        paths.AUTOENCODER: ("encode", "scorer", "judge"),
        paths.TEXT_ENCODER: ("encode", "judge"),
        paths.JUDGE: ("evaluate@grown",),
    }
    for place, stages in readers.items():
        file = place if place.suffix else next(place.glob("*.safetensors"))
        name = break_weight(file)
        for reader in stages:
            said = one_line(reader, drawing)
            assert said.startswith(str(place)) and f"{name} holds numbers that are not finite" in said, reader
        file.write_bytes(good[file])


@pytest.mark.parametrize("member", ["latent.npy", "text.npy"])
def test_a_held_out_sample_that_is_not_finite_is_named_by_every_stage_that_reads_it(
    networks: Params, member: str
) -> None:
    for path in paths.ENCODED.iterdir():
        path.unlink()
    paths.ENCODED.rmdir()
    write_encoded(Path.cwd(), train=24, numbers={("heldout", 9, member): math.nan})
    place = f"{paths.ENCODED}/heldout-00001.tar: sample 9 of heldout (key 0009)"
    for reader in HELDOUT_READERS:
        said = one_line(reader, networks)
        assert said.startswith(f"{place} holds numbers in its .{member} that are not finite"), reader


def test_an_empty_prompt_that_is_not_finite_is_named(networks: Params) -> None:
    save_file({NULL_TEXT_NAME: torch.full((1, 6), math.inf, dtype=torch.float16)}, paths.ENCODED / NULL_TEXT)
    assert one_line("train", networks).startswith(f"{paths.ENCODED / NULL_TEXT} holds numbers that are not finite")


def test_a_held_out_loss_that_overflows_is_named_with_its_sample(networks: Params) -> None:
    network: Sana = small_network(2)
    with torch.no_grad():
        network.final_layer.linear.weight.fill_(3e38)
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    with pytest.raises(
        UserError, match=r"heldout-00000\.tar: sample 0 of heldout \(key 0000\) has a held-out loss that"
    ):
        heldout_loss(network, heldout, networks.diffusion, 0, "cpu", "float32")


def test_features_of_real_pictures_that_are_not_finite_are_named(tmp_path: Path) -> None:
    features = np.zeros((5, 3), np.float32)
    features[3, 1] = np.nan
    np.save(tmp_path / "real.npy", features)
    with pytest.raises(UserError, match=r"real\.npy: picture 3 of 5 has features that are not finite"):
        read_features(tmp_path / "real.npy")


def test_an_inception_network_that_is_not_finite_is_named(tmp_path: Path) -> None:
    network = write_network(tmp_path / "inception.pt")
    with torch.no_grad():
        network.layers.convolution.bias[0] = math.nan
    torch.jit.script(network).save(str(tmp_path / "inception.pt"))
    with pytest.raises(UserError, match=r"inception\.pt: layers\.convolution\.bias holds numbers that are not finite"):
        InceptionFeatures(tmp_path / "inception.pt", "cpu")
