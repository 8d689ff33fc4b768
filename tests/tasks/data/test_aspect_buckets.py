"""Claims about aspect-ratio buckets: the published sizes, pictures cropped to them, and batches of one shape."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from PIL import Image, ImageOps
from safetensors.torch import save_file

from model.autoencoder import build_autoencoder, load_autoencoder
from model.flow_matching import TIMESTEPS, add_noise, shift, velocity
from model.text_encoder import Reading, build_text_encoder, train_tokenizer
from tasks.autoencoder import batches as autoencoder_batches
from tasks.autoencoder import check_sizes, scaling_factor
from tasks.computing.seeds import derive, generator, row_generator
from tasks.data.aspect_buckets import aspect_buckets, nearest_bucket
from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME, EncodedDataset
from tasks.data.npy_arrays import to_npy
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.picture_files import load_picture
from tasks.data.sample_order import grouped_batch_indices, rank_rows
from tasks.data.shards import Sample, ShardReader, describe, write_index, write_split
from tasks.data.sources.picture_folder import folder_candidates
from tasks.encode import encode_shards
from tasks.evaluation.judges.labelled_examples import shard_pictures
from tasks.params.experiment_params import Params
from tasks.params.network_params import Diffusion
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.shard import write_own_pictures
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.growth_comparison import read_probe
from tasks.training.heldout_loss import heldout_loss
from tasks.training.training_batch import training_batch
from tasks.training.training_loop import Trainer
from tests.helpers.drawing_workspace import all_bytes, run
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR

# Ratio, height and width of SANA's ASPECT_RATIO_1024 that diffusers' table of 33 lacks.
BEYOND_DIFFUSERS = {
    0.26: (512, 1984),
    0.27: (512, 1920),
    2.89: (1664, 576),
    3.11: (1792, 576),
    3.62: (1856, 512),
    3.75: (1920, 512),
    3.88: (1984, 512),
}
DIFFUSION = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.3)
SIZES = [(60, 100), (80, 80), (100, 60), (30, 120)]
CHANGES = PUBLISHED_DETECTOR | {
    "shard.source": "folder",
    "shard.path": "pictures",
    "shard.image_size": 64,
    "shard.aspect_buckets": True,
    "shard.heldout_samples": 6,
    "shard.samples_per_shard": 7,
    "text_encoder.max_tokens": 9,
    "encode.batch_size": 4,
    "encode.samples_per_shard": 6,
}


def published(base: int) -> dict[float, tuple[int, int]]:
    """SANA's table for 1024 or 512 pixels."""
    known = {1024: ASPECT_RATIO_1024_BIN, 512: ASPECT_RATIO_512_BIN}[base]
    beyond = {
        ratio: (height * base // 1024, width * base // 1024) for ratio, (height, width) in BEYOND_DIFFUSERS.items()
    }
    return {float(ratio): (int(height), int(width)) for ratio, (height, width) in known.items()} | beyond


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_mixed(folder: Path, counts: dict[tuple[int, int], int], split: str = "train", seed: int = 0) -> list:
    """Encoded samples of several latent shapes (3, h, w), in mixed order, as entries of the index."""
    random = np.random.default_rng(seed)
    sizes = random.permutation(np.repeat(list(counts), list(counts.values()), axis=0))
    samples = (
        Sample(
            f"{i:04d}",
            {
                "latent.npy": to_npy(random.standard_normal((3, height, width)).astype(np.float16)),
                "text.npy": to_npy(random.standard_normal((2 + i % 3, 6)).astype(np.float16)),
                "json": describe(8 * int(height), 8 * int(width), f"a photo of {i} things"),
            },
            (8 * int(height), 8 * int(width)),
        )
        for i, (height, width) in enumerate(sizes)
    )
    return write_split(folder, split, samples, 8)


def mixed_encoded(folder: Path) -> Path:
    """A folder of encoded samples of two shapes."""
    folder.mkdir(parents=True)
    splits = {
        "train": write_mixed(folder, {(4, 4): 23, (2, 6): 14}),
        "heldout": write_mixed(folder, {(4, 4): 5, (2, 6): 8}, "heldout", 1),
    }
    write_index(folder, splits)
    save_file({NULL_TEXT_NAME: torch.zeros(1, 6, dtype=torch.float16)}, folder / NULL_TEXT)
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace with shards of own pictures of four sizes in buckets, and untrained encoders."""
    monkeypatch.chdir(tmp_path)
    params = build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), CHANGES, "test"), "test")
    random = np.random.default_rng(0)
    Path("pictures").mkdir()
    for i in range(32):
        pixels = np.full((*SIZES[i % 4], 3), random.integers(0, 256, 3), np.uint8)
        Path(f"pictures/{i}.png").write_bytes(png(pixels))
        Path(f"pictures/{i}.txt").write_text(f"picture {i}")
    for folder in (paths.SHARDS, paths.AUTOENCODER, paths.TEXT_ENCODER):
        folder.mkdir(parents=True)
    write_own_pictures(paths.SHARDS, params.shard, folder_candidates(Path("pictures")))
    torch.manual_seed(0)
    build_autoencoder(4, (8, 8), 1).save(paths.AUTOENCODER)
    tokenizer = train_tokenizer([f"picture {i}" for i in range(32)], 300)
    build_text_encoder(tokenizer, 16, 1, 2, Reading(9, "none", "diffusers", "stored")).save(paths.TEXT_ENCODER)
    yield params


@pytest.mark.parametrize("base", [1024, 512])
def test_buckets_are_the_published_forty(base: int) -> None:
    buckets = aspect_buckets(base)
    assert {bucket.ratio: (bucket.height, bucket.width) for bucket in buckets} == published(base)
    assert len(buckets) == 40 and len(published(base)) == 40
    assert [bucket.ratio for bucket in buckets] == sorted(bucket.ratio for bucket in buckets)
    assert all(bucket.height % 32 == bucket.width % 32 == 0 for bucket in buckets)


def test_base_that_does_not_divide_is_refused() -> None:
    for base in (0, 8, 1000):
        with pytest.raises(ValueError, match="multiple of 16"):
            aspect_buckets(base)


def test_nearest_bucket_is_that_of_the_nearest_published_ratio() -> None:
    table = published(1024)
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 3000, (500, 2)).tolist():
        ratio = min(sorted(table), key=lambda one: abs(one - height / width))
        bucket = nearest_bucket(height, width, aspect_buckets(1024))
        assert (bucket.height, bucket.width) == table[ratio]


def test_picture_is_resized_to_cover_its_bucket_and_cropped_around_its_centre() -> None:
    # 200x90 (2.22) goes to 92x44 (2.09): of 97.8 rows at a width of 44 the inner 92 stay, losing 6 of 200 at each end.
    pixels = np.full((200, 90, 3), 255, np.uint8)
    pixels[:5], pixels[-5:] = (255, 0, 0), (255, 0, 0)
    picture = load_picture(png(pixels), 64, 10**6, aspect_buckets(64))
    assert picture.shape == (92, 44, 3) and picture.min() >= 240, "the red ends are cropped away"
    pixels[5:12], pixels[-12:-5] = (0, 0, 255), (0, 0, 255)
    picture = load_picture(png(pixels), 64, 10**6, aspect_buckets(64))
    assert picture[0, :, 0].max() < 80 and picture[-1, :, 0].max() < 80, "and no more than they"
    assert picture[20:-20].min() == 255


def test_picture_on_its_side_goes_to_the_bucket_of_the_upright_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, format="JPEG", exif=exif)
    assert load_picture(buffer.getvalue(), 64, 10**6, aspect_buckets(64)).shape == (88, 44, 3)


def test_shards_record_the_size_of_every_sample_whatever_shard_it_is_in(pictures: Params) -> None:
    mixed = 0
    for split in ("train", "heldout"):
        reader = ShardReader(paths.SHARDS, split)
        records = [reader.record(index) for index in range(len(reader))]
        decoded = [Image.open(io.BytesIO(reader.read(index, "png"))).size for index in range(len(reader))]
        assert [(record["width"], record["height"]) for record in records] == decoded
        assert reader.sizes.tolist() == [[height, width] for width, height in decoded]
        for entry in json.loads((paths.SHARDS / "index.json").read_text())["splits"][split]:
            mixed += len(np.unique(np.load(paths.SHARDS / entry["sizes"]), axis=0)) > 1
        assert sorted(np.concatenate(reader.size_groups)) == list(range(len(reader)))
        assert all(len(np.unique(reader.sizes[group], axis=0)) == 1 for group in reader.size_groups)
    assert mixed > 2
    sizes = {tuple(size) for size in ShardReader(paths.SHARDS, "train").sizes.tolist()}
    assert sizes == {(48, 80), (64, 64), (80, 48), (32, 128)}


def test_some_samples_are_cut_into_batches_of_one_size_in_their_order(pictures: Params) -> None:
    reader = ShardReader(paths.SHARDS, "train")
    chosen = np.random.default_rng(1).permutation(len(reader))[:17]
    batches = list(reader.batches(chosen, 3))
    assert sorted(np.concatenate(batches)) == sorted(chosen) and max(map(len, batches)) == 3
    assert all(len(np.unique(reader.sizes[batch], axis=0)) == 1 for batch in batches)
    for group in reader.size_groups:
        own = [index for batch in batches for index in batch if index in group]
        assert own == [index for index in chosen if index in group]
        assert sum(bool(np.isin(batch, group).all()) for batch in batches) == -(-len(own) // 3)


def test_without_buckets_pictures_are_square_and_no_size_is_recorded(pictures: Params) -> None:
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), CHANGES | {"shard.aspect_buckets": False}, "test")
    Path("square").mkdir()
    write_own_pictures(Path("square"), build_params(values, "test").shard, folder_candidates(Path("pictures")))
    assert not list(Path("square").glob("*.sizes.npy"))
    assert "sizes" not in Path("square/index.json").read_text()
    dataset = PictureDataset(Path("square"), "train")
    assert dataset.pictures(range(len(dataset))).shape[1:] == (64, 64, 3)


def test_encode_caches_each_picture_at_its_own_shape(pictures: Params) -> None:
    for name in ("out", "again"):
        Path(name).mkdir()
        encode_shards(Path(name), pictures, "cpu")
    assert all(path.read_bytes() == Path("again", path.name).read_bytes() for path in Path("out").iterdir())
    autoencoder = load_autoencoder(paths.AUTOENCODER)
    for split in ("train", "heldout"):
        shown, dataset = PictureDataset(paths.SHARDS, split), EncodedDataset(Path("out"), split)
        assert sorted(dataset.captions) == sorted(shown.captions)
        for group in dataset.shape_groups:
            batch = dataset.batch(group)
            for index, latent in zip(group.tolist(), batch.latents_BCHW, strict=True):
                picture = shown.pictures([shown.captions.index(dataset.captions[index])])
                expected = autoencoder.encode(to_unit_range(picture))[0]
                torch.testing.assert_close(latent, expected, atol=2e-3, rtol=2e-3)
        assert len(dataset.shape_groups) == len(
            {tuple(size) for size in ShardReader(Path("out"), split).sizes.tolist()}
        )


def test_buckets_that_have_no_latents_stop_encoding_before_it_begins(pictures: Params) -> None:
    build_autoencoder(4, (8, 8, 8), 1).save(paths.AUTOENCODER)  # 1/8 of the side, where buckets are multiples of 4
    Path("pictures/0.png").write_bytes(png(np.zeros((44, 92, 3), np.uint8)))
    write_own_pictures(paths.SHARDS, pictures.shard, folder_candidates(Path("pictures")))
    Path("out").mkdir()
    with pytest.raises(UserError, match="44x92 pixels has no latent: sides must be multiples of 8"):
        encode_shards(Path("out"), pictures, "cpu")


def test_buckets_that_have_no_latents_stop_the_autoencoder_also_where_training_pictures_alone_are_of_such_a_size(
    pictures: Params,
) -> None:
    shutil.rmtree("pictures")
    Path("pictures").mkdir()
    last = max(range(9), key=lambda i: hashlib.sha256(str(i).encode()).digest())  # it is not held out
    for i in range(9):
        height, width = (44, 92) if i == last else (64, 64)
        Path(f"pictures/{i}.png").write_bytes(png(np.zeros((height, width, 3), np.uint8)))
        Path(f"pictures/{i}.txt").write_text(f"picture {i}")
    write_own_pictures(paths.SHARDS, pictures.shard, folder_candidates(Path("pictures")))
    assert PictureDataset(paths.SHARDS, "heldout").sizes() == [(64, 64)]
    advice = r"set shard\.image_size in params\.yaml to a multiple of 128, or shard\.aspect_buckets to false$"
    with pytest.raises(UserError, match=f"44x92 pixels has no latent: sides must be multiples of 8; {advice}"):
        check_sizes(build_autoencoder(4, (8, 8, 8), 1))
    check_sizes(build_autoencoder(4, (8, 8), 1))


def test_autoencoder_sees_every_picture_once_in_batches_of_one_size(pictures: Params) -> None:
    dataset = PictureDataset(paths.SHARDS, "train")
    shown = [batch.shape for batch in autoencoder_batches(dataset, np.arange(len(dataset)))]
    assert sum(shape[0] for shape in shown) == len(dataset) and len(shown) == 4
    autoencoder = load_autoencoder(paths.AUTOENCODER)
    values = [autoencoder.encode(to_unit_range(dataset.pictures([i]))).double().flatten() for i in range(len(dataset))]
    assert scaling_factor(autoencoder, dataset) == pytest.approx(1 / torch.cat(values).std().item(), rel=1e-3)


def test_judge_is_shown_pictures_of_every_bucket_cropped_to_the_square(pictures: Params) -> None:
    dataset = PictureDataset(paths.SHARDS, "train")
    sizes = [tuple(size) for size in ShardReader(paths.SHARDS, "train").sizes.tolist()]
    assert shard_pictures(1000, 64, seed=0).shape == (len(dataset), 64, 64, 3)
    assert shard_pictures(2, 16, seed=0).shape == (2, 16, 16, 3)
    square, wide = sizes.index((64, 64)), next(i for i, (height, width) in enumerate(sizes) if width > height)
    assert np.array_equal(dataset.squares([square], 64), dataset.pictures([square]))
    shown = ImageOps.fit(Image.fromarray(dataset.pictures([wide])[0]), (64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(dataset.squares([wide], 64)[0], np.asarray(shown))


def test_sizes_that_are_missing_or_of_another_shard_are_named(tmp_path: Path) -> None:
    folder = mixed_encoded(tmp_path / "encoded")
    (folder / "train-00001.sizes.npy").write_bytes(to_npy(np.zeros((3, 2), np.uint16)))
    with pytest.raises(UserError, match=r"train-00001\.sizes\.npy has sizes \(3, 2\), index\.json says 8 samples"):
        EncodedDataset(folder, "train").shape_groups  # noqa: B018
    (folder / "train-00001.sizes.npy").unlink()
    with pytest.raises(UserError, match=r"train-00001\.sizes\.npy is missing: run the stage"):
        EncodedDataset(folder, "train").shape_groups  # noqa: B018


def test_training_batches_of_all_processes_are_the_batch_of_one(tmp_path: Path) -> None:
    dataset = EncodedDataset(mixed_encoded(tmp_path / "encoded"), "train")
    shapes = set()
    for step in range(12):
        whole = training_batch(dataset, DIFFUSION, "diffusers", 5, step, 12)
        shapes.add(tuple(whole.latents_BCHW.shape[1:]))
        for rank in range(2):
            rows = rank_rows(12, rank, 2, parts=3)
            own = training_batch(dataset, DIFFUSION, "diffusers", 5, step, 12, rows)
            for name in ("latents_BCHW", "noise_BCHW", "sigma_B"):
                assert torch.equal(getattr(own, name), getattr(whole, name)[rows])
            length = own.text_BTE.shape[1]  # padded to the longest of its own
            assert torch.equal(own.text_BTE, whole.text_BTE[rows, :length])
            assert torch.equal(own.mask_BT, whole.mask_BT[rows, :length]) and not whole.mask_BT[rows, length:].any()
    assert shapes == {(3, 4, 4), (3, 2, 6)}


def test_heldout_loss_of_several_shapes_is_the_mean_over_single_samples(tmp_path: Path) -> None:
    dataset, network = EncodedDataset(mixed_encoded(tmp_path / "encoded"), "heldout"), small_network(2)
    shapes = [tuple(dataset.batch([index]).latents_BCHW.shape[1:]) for index in range(13)]
    quantiles = (torch.randperm(13, generator=generator(4, "held-out times")) + 0.5) / 13
    sigmas = shift(torch.sigmoid(torch.special.ndtri(quantiles)), 3.0)
    losses = []
    for index, shape in enumerate(shapes):
        drawn = row_generator(derive(4, "held-out noise"), 0, index).standard_normal((1, *shape), np.float32)
        batch, noise = dataset.batch([index]), torch.from_numpy(drawn)
        noised = add_noise(batch.latents_BCHW, noise, sigmas[[index]])
        text = network.encode_text(batch.text_BTE, batch.mask_BT)
        with torch.no_grad():
            error = network(noised, sigmas[[index]] * TIMESTEPS, text) - velocity(batch.latents_BCHW, noise)
        losses.append(error.square().mean().item())
    measured = heldout_loss(network, dataset, DIFFUSION, 4, "cpu", "float32").value
    assert measured == pytest.approx(np.mean(losses), rel=1e-5)


def test_growth_is_probed_on_the_commonest_shape(tmp_path: Path) -> None:
    dataset = EncodedDataset(mixed_encoded(tmp_path / "encoded"), "heldout")
    assert read_probe(dataset, 0, "cpu").noised_BCHW.shape == (8, 3, 2, 6)


TRAINING = {
    "compute.device": "cpu",
    "compute.threads": 1,
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "pretrain.depth": 1,
    "pretrain.steps": 24,
    "pretrain.batch_size": 8,
    "pretrain.grad_accumulation": 2,
    "pretrain.warmup_steps": 2,
    "pretrain.checkpoint_every": 3,
    "pretrain.evaluate_every": 12,
}


def pretrain_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Run stage pretrain in the workspace `folder`; what it wrote."""
    monkeypatch.chdir(folder)
    params = build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), TRAINING, "test"), "test")
    run(stage_of("pretrain", params), params, Path("out"))
    return all_bytes(Path("out"))


def test_training_on_two_shapes_stopped_inside_an_epoch_and_restarted_equals_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "stopped"):
        mixed_encoded(tmp_path / name / paths.ENCODED)
    whole = pretrain_in(tmp_path / "whole", monkeypatch)
    shapes, update = [], Trainer.update

    def noted_update(trainer: Trainer) -> float:
        """An update that ends the process before the 11th: the checkpoint is of the 9th, inside the third epoch."""
        if trainer.step == 10 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        indices = grouped_batch_indices(
            trainer.context.params.compute.seed, trainer.step, 8, trainer.dataset.shape_groups
        )
        shapes.append(tuple(trainer.dataset.batch(indices).latents_BCHW.shape))
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", noted_update)
    with pytest.raises(KeyboardInterrupt):
        pretrain_in(tmp_path / "stopped", monkeypatch)
    assert not all_bytes(tmp_path / "stopped" / "out")
    (tmp_path / "stopped" / "out").rmdir()
    assert pretrain_in(tmp_path / "stopped", monkeypatch) == whole
    assert len(shapes) == 10 + 24 - 9, "resumed after the checkpoint at step 9"
    assert set(shapes) == {(8, 3, 4, 4), (8, 3, 2, 6)}
