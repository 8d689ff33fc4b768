"""Stage `text_encoder` trains one whose states tell a noun's colour, or takes a folder over unchanged."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.text_encoder import Reading, TextEncoder, build_text_encoder, load_text_encoder, train_tokenizer
from tasks import shard
from tasks.data.picture_dataset import PictureDataset
from tasks.data.scene_vocabulary import COLOURS, lines
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.text_encoder import build
from tasks.training.text_encoder_loss import IGNORED, LOOK_BACK, look_back_targets
from tests.helpers.drawing_workspace import all_bytes, run

PROJECT = Path(__file__).parents[2]
CHANGES = {
    "shard.image_size": 8,
    "shard.train_samples": 600,
    "shard.heldout_samples": 20,
    "text_encoder.vocabulary": 400,
    "text_encoder.hidden_size": 64,
    "text_encoder.layers": 2,
    "text_encoder.heads": 4,
    "text_encoder.max_tokens": 16,
    "text_encoder.steps": 10,
    "text_encoder.batch_size": 32,
    "text_encoder.learning_rate": 4e-3,
}


def changed(**changes: object) -> Params:
    """The default params with `CHANGES` and keys of the section `text_encoder`."""
    values = CHANGES | {f"text_encoder.{key}": value for key, value in changes.items()}
    return build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), values, "test"), "test")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace with shards of small scenes."""
    params = changed()
    monkeypatch.chdir(tmp_path)
    paths.SHARDS.mkdir(parents=True)
    shard.write_scenes(paths.SHARDS, params.shard, seed=0)
    yield params


def noun_states(encoder: TextEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states (B, E) on the second noun of two-colour captions, with noise of half their size; its colour (B,)."""
    chosen = np.random.default_rng(0).permutation(np.array(lines("color_attr"), dtype=object))[:1200]
    embeddings = encoder.encode([line["prompt"] for line in chosen])
    states = torch.stack([embedding[-1] for embedding in embeddings])
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    noisy = states / states.square().mean(dim=1, keepdim=True).sqrt() + 0.5 * noise
    return noisy, torch.tensor([list(COLOURS).index(line["include"][1]["color"]) for line in chosen])


def probe_accuracy(encoder: TextEncoder) -> float:
    """How often least squares, fitted on two thirds of the captions, reads the colour from the noun's state."""
    states, colours = noun_states(encoder)
    inputs = torch.cat([states, torch.ones(len(states), 1)], dim=1)
    fitted = torch.linalg.lstsq(inputs[:800], torch.eye(len(COLOURS))[colours[:800]]).solution
    return ((inputs[800:] @ fitted).argmax(dim=1) == colours[800:]).float().mean().item()


def test_state_of_a_noun_tells_its_colour_after_training_and_not_before(params: Params) -> None:
    chosen = changed(steps=300, learning_rate=8e-3)
    metrics, out = run(stage_of("text_encoder", chosen), chosen)
    torch.manual_seed(0)
    untrained = build(chosen, PictureDataset(paths.SHARDS, "train").captions)
    assert probe_accuracy(load_text_encoder(out)) > 0.85
    assert probe_accuracy(untrained) < 0.6
    assert metrics["heldout_perplexity"] < 3 < 100 < metrics["untrained_perplexity"]


def test_reported_perplexity_is_that_of_each_caption_alone(params: Params) -> None:
    metrics, out = run(stage_of("text_encoder", params), params)
    encoder = load_text_encoder(out)
    total, count = 0.0, 0
    for caption in PictureDataset(paths.SHARDS, "heldout").captions:
        ids = torch.tensor([[*encoder.tokens([caption])[0], encoder.tokenizer.eos_token_id]])
        with torch.no_grad():
            logs = encoder.model(input_ids=ids).logits.double().log_softmax(-1)
        total -= sum(logs[0, place, ids[0, place + 1]].item() for place in range(ids.shape[1] - 1))
        count += ids.shape[1] - 1
    assert metrics["heldout_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_look_back_targets_are_the_last_tokens_up_to_each_place() -> None:
    labels = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    labels[1, 7:] = labels[2, 1:] = IGNORED
    targets = look_back_targets(labels)
    assert targets.shape == (3, 12, LOOK_BACK)
    for (row, place, back), target in np.ndenumerate(targets.numpy()):
        source = place - (LOOK_BACK - 1 - back)
        known = source >= 0 and labels[row, place] != IGNORED
        assert target == (labels[row, source] if known else IGNORED)


def test_training_twice_gives_the_same_bytes(params: Params) -> None:
    first = all_bytes(run(stage_of("text_encoder", params), params, Path("first"))[1])
    assert first == all_bytes(run(stage_of("text_encoder", params), params, Path("second"))[1])
    assert {"config.json", "model.safetensors", "tokenizer.json", "history.csv"} <= set(first)


def test_published_folder_is_taken_over_unchanged(params: Params) -> None:
    published = Path("published")
    build_text_encoder(
        train_tokenizer(["a red circle"] * 2, 300), 16, 1, 2, Reading(16, "none", "diffusers", "stored")
    ).save(published)
    chosen = changed(path=str(published))
    metrics, out = run(stage_of("text_encoder", chosen), chosen)
    assert all_bytes(published) == all_bytes(out)
    assert load_text_encoder(out).encode_null().shape == (1, 16)
    assert math.isfinite(metrics["heldout_perplexity"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, r"params\.yaml: text_encoder\.path: .*nowhere holds no text encoder"),
        ({"hidden_size": 20}, r"params\.yaml: text_encoder\.hidden_size 20 in 4 heads is 5 for each: it must be even"),
        ({"vocabulary": 200}, r"params\.yaml: text_encoder\.vocabulary is 200: it must be 259 or above"),
    ],
)
def test_params_that_cannot_work_are_refused_by_name(params: Params, changes: dict[str, object], message: str) -> None:
    chosen = changed(**changes)
    with pytest.raises(UserError, match=message) as raised:
        run(stage_of("text_encoder", chosen), chosen)
    assert "\n" not in str(raised.value)
