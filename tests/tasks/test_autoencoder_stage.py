"""Stage `autoencoder` trains one that beats its untrained self, or takes a published folder over unchanged."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.autoencoder import build_autoencoder, load_autoencoder
from tasks import autoencoder as autoencoder_stage
from tasks import shard
from tasks.computing.seeds import derive, generator
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.sample_order import batch_indices
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.runtime.context import Context
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.tracking.tracker import open_tracker
from tests.helpers.drawing_workspace import all_bytes, run

PROJECT = Path(__file__).parents[2]
CHANGES = {
    "compute.dtype": "float32",
    "shard.image_size": 16,
    "shard.train_samples": 64,
    "shard.heldout_samples": 20,
    "autoencoder.latent_channels": 12,
    "autoencoder.block_channels": [24, 24],
    "autoencoder.steps": 60,
    "autoencoder.batch_size": 8,
}
OUT = paths.AUTOENCODER


def changed(**changes: object) -> Params:
    """The default params with `CHANGES` and keys of the section `autoencoder`."""
    values = CHANGES | {f"autoencoder.{key}": value for key, value in changes.items()}
    return build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), values, "test"), "test")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace with shards of small scenes."""
    params = changed()
    monkeypatch.chdir(tmp_path)
    paths.SHARDS.mkdir(parents=True)
    shard.write_scenes(paths.SHARDS, params.shard, seed=0)
    yield params


def all_pictures(split: str) -> torch.Tensor:
    dataset = PictureDataset(paths.SHARDS, split)
    return to_unit_range(dataset.pictures(range(len(dataset))))


def test_trained_autoencoder_beats_its_untrained_self_and_its_latents_have_unit_variance(params: Params) -> None:
    metrics, out = run(stage_of("autoencoder", params), params)
    assert metrics["heldout_psnr"] > metrics["untrained_psnr"] + 4
    latents = load_autoencoder(out).encode(all_pictures("train"))
    assert latents.shape == (64, 12, 4, 4)
    assert latents.std().item() == pytest.approx(1, rel=1e-3)


def test_reported_psnr_is_that_of_the_saved_autoencoder(params: Params) -> None:
    metrics, out = run(stage_of("autoencoder", params), params)
    autoencoder, pictures = load_autoencoder(out), all_pictures("heldout")
    error = (autoencoder.decode(autoencoder.encode(pictures)) - pictures).double().square().mean().item()
    assert metrics["heldout_psnr"] == pytest.approx(10 * math.log10(4 / error), abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_twice_gives_the_same_bytes(params: Params, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHANGES, "compute.dtype", dtype)
    short = changed(steps=6)
    first = all_bytes(run(stage_of("autoencoder", short), short, Path("first"))[1])
    assert first == all_bytes(run(stage_of("autoencoder", short), short, Path("second"))[1])
    assert {"config.json", "diffusion_pytorch_model.safetensors", "history.csv"} <= set(first)


def test_loss_is_the_error_under_noise_and_the_mean_penalty_whatever_the_latents_scale(params: Params) -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(12, (24, 24), 1)
    pictures = PictureDataset(paths.SHARDS, "train")
    with open_tracker("test") as tracker:
        context = Context("autoencoder", params, Path("out"), Path("state"), tracker, "cpu", 1)
        loss = autoencoder_stage.reconstruction_loss(autoencoder, pictures, context)(3).item()
    seed = params.compute.seed
    batch = to_unit_range(pictures.pictures(batch_indices(derive(seed, "autoencoder"), 3, 8, len(pictures))))
    with torch.no_grad():
        latents = autoencoder.network.encode(batch).latent
        noise = torch.randn(latents.shape, generator=generator(seed, "autoencoder", "noise", 3))
        rms = latents.double().pow(2).mean().sqrt()
        decoded = autoencoder.network.decode(latents + (0.1 * rms * noise).float()).sample
    error = (decoded - batch).double().pow(2).mean()
    means = latents.double().flatten(2).mean(2).mean(0)
    assert loss == pytest.approx((error + 0.01 * (means / rms).pow(2).mean()).item(), rel=1e-4)


def test_reconstructions_show_pictures_above_what_the_autoencoder_makes_of_them(params: Params) -> None:
    short = changed(steps=2)
    _, out = run(stage_of("autoencoder", short), short)
    grid = np.asarray(Image.open(out / "reconstructions.png"))
    assert grid.shape == (32, 16 * 16, 3)
    originals = PictureDataset(paths.SHARDS, "heldout").pictures(range(16))
    assert np.array_equal(grid[:16], np.concatenate(list(originals), axis=1))
    autoencoder = load_autoencoder(out)
    made = (autoencoder.decode(autoencoder.encode(to_unit_range(originals))) + 1) * 127.5
    assert np.abs(grid[16:, 16:32] - made[1].permute(1, 2, 0).numpy()).max() <= 0.51


def test_published_folder_is_taken_over_unchanged_also_through_links(params: Params) -> None:
    published, cache = Path("published"), Path("cache")
    build_autoencoder(4, (8, 8, 8), 1).save(published)
    cache.mkdir()
    for path in published.iterdir():
        (cache / path.name).symlink_to(path.resolve())
    chosen = changed(path=str(cache))
    metrics, out = run(stage_of("autoencoder", chosen), chosen)
    assert all_bytes(published).items() <= all_bytes(out).items()
    assert not any(path.is_symlink() for path in out.iterdir())
    assert metrics["downsampling"] == 8 and math.isfinite(metrics["heldout_psnr"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, r"params\.yaml: autoencoder\.path: .*nowhere holds no AutoencoderDC"),
        ({"block_channels": [24, 20]}, r"params\.yaml: autoencoder\.block_channels end in 20"),
        (
            {"block_channels": [12] * 5},
            r"outputs/shards: .*16x16 pixels has no latent: .* 32; set shard\.image_size .* to a multiple of 32$",
        ),
        ({"learning_rate": 1e20}, r"params\.yaml: autoencoder: the loss is .* lower autoencoder\.learning_rate"),
    ],
)
def test_params_that_cannot_work_are_refused_by_name(params: Params, changes: dict[str, object], message: str) -> None:
    chosen = changed(**changes)
    with pytest.raises(UserError, match=message) as raised:
        run(stage_of("autoencoder", chosen), chosen)
    assert "\n" not in str(raised.value)
