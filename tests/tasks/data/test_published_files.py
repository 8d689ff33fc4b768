"""Claims about published models with a fault: each is one line that names the file or folder, whatever the model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.data.published_files import published_path
from tasks.evaluation.detectors.detector_choice import build_detector
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_file, write_manifest
from tests.helpers.drawing_workspace import run, write_workspace
from tests.helpers.published_folders import PATHS, write_folders, write_transformer
from tests.helpers.small_workspace import write_encoded

MODELS = ("autoencoder", "gemma", "sana", "mask2former", "clip", "judge")
SCORER = ("geneval.mask2former_path", "geneval.clip_path", "geneval.prompts")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A workspace with every published model in `models/`."""
    monkeypatch.chdir(tmp_path)
    write_workspace()
    write_encoded(tmp_path)
    write_folders(Path("models"), pictures=4)
    write_transformer(Path("models/sana"), 2, 32, 3, 6)
    yield


def params_of(model: str) -> Params:
    """The workspace's params with one of the models in use."""
    paths = {key: f"models/{name}" for key, name in PATHS.items()}
    changes: dict[str, Any] = {
        "autoencoder": {"autoencoder.path": paths["autoencoder.path"]},
        "gemma": {"text_encoder.path": paths["text_encoder.path"]},
        "judge": {"judge.kind": "vision_language", "judge.path": paths["judge.path"]},
        "sana": {
            "pretrain.path": "models/sana",
            "pretrain.depth": 2,
            "pretrain.steps": 0,
            "pretrain.warmup_steps": 0,
            "network.hidden_size": 32,
            "network.linear_head_dim": 16,
            "network.cross_heads": 2,
        },
    }.get(model, {key: paths[key] for key in SCORER} | {"geneval.detector": "mask2former"})
    return build_params(apply_overrides(read_yaml(PARAMS_FILE), changes, "test"), "test")


def load(model: str) -> None:
    """What the stage that uses a model does with it."""
    params = params_of(model)
    stages = {"autoencoder": "autoencoder", "gemma": "text_encoder", "sana": "pretrain", "judge": "judge"}
    if model in stages:
        run(stage_of(stages[model], params), params, Path("again"))
    else:
        build_detector(params.geneval, "cpu")


def weights_of(model: str) -> Path:
    return sorted(Path("models", model).glob("*.safetensors"))[0]


def complaint(model: str) -> str:
    """The one line in which a model is refused."""
    with pytest.raises(UserError) as error:
        load(model)
    text = str(error.value)
    assert "\n" not in text and str(Path("models", model)) in text
    return text


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_folder_is_taken(model: str) -> None:
    load(model)


@pytest.mark.parametrize("damage", [cut_off, damage_header])
@pytest.mark.parametrize("model", MODELS)
def test_a_damaged_file_of_weights_is_refused(model: str, damage: Callable[[Path], None]) -> None:
    damage(weights_of(model))
    complaint(model)


@pytest.mark.parametrize("model", MODELS)
def test_a_flipped_bit_is_found_by_the_sha256_that_the_hub_noted(model: str) -> None:
    weights = weights_of(model)
    note = weights.parent / ".cache/huggingface/download" / f"{weights.name}.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{COMMIT}\n{sha256_file(weights)}\n1.0\n", encoding="utf-8")
    published_path(f"models/{model}")
    flip_a_bit(weights)
    assert complaint(model) == f"{weights.resolve()} is damaged: its sha256 is not the one on record: download it again"


@pytest.mark.parametrize("model", MODELS)
def test_a_flipped_bit_is_found_by_the_manifest_of_a_folder_of_this_project(model: str) -> None:
    write_manifest(Path("models", model))
    flip_a_bit(weights_of(model))
    assert "its sha256 is not the one on record" in complaint(model)


def test_a_link_into_the_hubs_cache_is_held_to_the_name_of_its_blob(tmp_path: Path) -> None:
    weights = weights_of("autoencoder")
    blob = tmp_path / "blobs" / sha256_file(weights)
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    published_path("models/autoencoder")
    flip_a_bit(blob)
    assert str(weights) in complaint("autoencoder")


def test_files_that_the_hub_notes_with_a_git_hash_are_not_held_to_it() -> None:
    note = Path("models/gemma/.cache/huggingface/download/config.json.metadata")
    note.parent.mkdir(parents=True)
    note.write_text(f"{COMMIT}\n{COMMIT}\n1.0\n", encoding="utf-8")
    assert published_path("models/gemma") == Path("models/gemma").resolve()


@pytest.mark.parametrize("model", MODELS)
def test_the_config_of_another_model_is_refused(model: str) -> None:
    Path("models", model, "config.json").write_text(json.dumps({"model_type": "bert", "_class_name": "Bert"}))
    complaint(model)


@pytest.mark.parametrize("model", ["gemma", "clip", "judge"])
def test_a_folder_without_its_tokenizer_is_refused(model: str) -> None:
    for path in Path("models", model).glob("*tok*"):
        path.unlink()
    for name in ("vocab.json", "merges.txt"):
        Path("models", model, name).unlink(missing_ok=True)
    assert "tokenizer" in complaint(model)


def test_a_network_of_other_encoders_is_refused_with_what_it_needs() -> None:
    write_transformer(Path("models/sana"), 2, 32, 5, 7)
    assert "models/sana has latent channels 5, not 3; caption channels 7, not 6" in complaint("sana")


def test_a_pickle_at_pretrain_path_is_not_run() -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("it-ran"),)

    torch.save({"state_dict": {"a": Payload()}}, "models/sana.pth")
    values = apply_overrides(read_yaml(PARAMS_FILE), {"pretrain.path": "models/sana.pth"}, "test")
    params = build_params(values, "test")
    with pytest.raises(UserError, match=r"sana\.pth holds more than tensors"):
        run(stage_of("pretrain", params), params, Path("again"))
    assert not Path("it-ran").exists() and paths.ENCODED.exists()
