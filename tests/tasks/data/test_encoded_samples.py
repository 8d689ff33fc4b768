"""Claims about cached encodings: they are what the encoders give, and are read back exactly."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.autoencoder import build_autoencoder, load_autoencoder
from model.text_encoder import Reading, build_text_encoder, load_text_encoder, train_tokenizer
from tasks import shard
from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME, EncodedDataset
from tasks.data.npy_arrays import to_npy, view_npy
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.picture_files import encode_png
from tasks.data.shards import Sample, describe, write_index, write_split
from tasks.encode import encode_shards
from tasks.params.experiment_params import Params
from tasks.params.network_params import Diffusion
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.training_batch import training_batch

CHANGES = {
    "shard.train_samples": 10,
    "shard.heldout_samples": 3,
    "shard.samples_per_shard": 4,
    "text_encoder.max_tokens": 9,
    "encode.batch_size": 4,
    "encode.samples_per_shard": 6,
}


class Payload:
    """An object that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def write_encoded(folder: Path, lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """An encoded folder of random latents (2, 3, 4) and texts (length, 5); returns them."""
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((2, 3, 4)), rng.standard_normal((length, 5))) for length in lengths]
    halves = [(latent.astype(np.float16), text.astype(np.float16)) for latent, text in arrays]
    samples = (
        Sample(f"{i:03d}", {"latent.npy": to_npy(latent), "text.npy": to_npy(text), "json": describe(24, 32, f"{i}")})
        for i, (latent, text) in enumerate(halves)
    )
    write_index(folder, {"train": write_split(folder, "train", samples, 2)})
    save_file({NULL_TEXT_NAME: torch.ones(1, 5, dtype=torch.float16)}, folder / NULL_TEXT)
    return halves


def run_encode(params: Params, out: Path) -> dict[str, float]:
    """Encode the shards of the current workspace."""
    out.mkdir()
    return encode_shards(out, params, "cpu")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace with shards of scenes, and an untrained autoencoder and text encoder."""
    values = apply_overrides(read_yaml(Path(__file__).parents[3] / PARAMS_FILE), CHANGES, "test")
    params = build_params(values, "test")
    monkeypatch.chdir(tmp_path)
    for folder in (paths.SHARDS, paths.AUTOENCODER, paths.TEXT_ENCODER):
        folder.mkdir(parents=True)
    shard.write_scenes(paths.SHARDS, params.shard, seed=0)
    torch.manual_seed(0)
    build_autoencoder(4, (8, 8), 1).save(paths.AUTOENCODER)
    tokenizer = train_tokenizer(PictureDataset(paths.SHARDS, "train").captions, 300)
    build_text_encoder(tokenizer, 16, 1, 2, Reading(9, "none", "diffusers", "stored")).save(paths.TEXT_ENCODER)
    yield params


def test_batch_holds_the_samples_that_were_written(tmp_path: Path) -> None:
    written = write_encoded(tmp_path, [3, 1, 4, 1, 5])
    dataset = EncodedDataset(tmp_path, "train")
    assert len(dataset) == 5 and dataset.latent_shape == (2, 3, 4) and dataset.captions == ["0", "1", "2", "3", "4"]
    assert torch.equal(dataset.null_text, torch.ones(1, 5)) and dataset.null_text.dtype == torch.float32
    for indices in ([0], [4, 1, 2], [3, 3, 1], np.array([2, 0])):
        batch = dataset.batch(indices)
        assert batch.latents_BCHW.dtype == batch.text_BTE.dtype == torch.float32 and batch.mask_BT.dtype == torch.bool
        longest = max(len(written[index][1]) for index in indices)
        assert batch.text_BTE.shape == (len(indices), longest, 5) and batch.mask_BT.shape == (len(indices), longest)
        for row, index in enumerate(indices):
            latent, text = written[index]
            assert np.array_equal(batch.latents_BCHW[row].numpy(), latent.astype(np.float32))
            assert np.array_equal(batch.text_BTE[row, : len(text)].numpy(), text.astype(np.float32))
            assert not batch.text_BTE[row, len(text) :].any()
            assert batch.mask_BT[row].tolist() == [place < len(text) for place in range(longest)]


def write_several(folder: Path, lengths: list[list[int]], weights: list[list[float]]) -> list[list[np.ndarray]]:
    """An encoded folder whose samples have several texts of these lengths; returns the texts."""
    rng = np.random.default_rng(0)
    texts = [[rng.standard_normal((length, 5)).astype(np.float16) for length in of_sample] for of_sample in lengths]
    samples = (
        Sample(
            f"{i:03d}",
            {
                "latent.npy": to_npy(np.zeros((2, 3, 4), np.float16)),
                "text.npy": to_npy(np.concatenate(texts[i])),
                "text_lengths.npy": to_npy(np.array(lengths[i], np.int32)),
                "text_weights.npy": to_npy(np.array(weights[i])),
                "json": describe(24, 32, f"{i}"),
            },
        )
        for i in range(len(lengths))
    )
    write_index(folder, {"train": write_split(folder, "train", samples, 2)})
    save_file({NULL_TEXT_NAME: torch.ones(1, 5, dtype=torch.float16)}, folder / NULL_TEXT)
    return texts


def test_a_draw_falls_on_the_caption_whose_share_it_lies_in_and_without_draws_it_is_the_first(tmp_path: Path) -> None:
    texts = write_several(tmp_path, [[3, 1, 2], [4]], [[1.0, 2.0, 1.0], [0.3]])
    dataset = EncodedDataset(tmp_path, "train")
    assert dataset.several_captions
    for draw, chosen in ((0.0, 0), (0.249, 0), (0.25, 1), (0.749, 1), (0.75, 2), (1 - 2**-53, 2)):
        batch = dataset.batch([0, 1], np.array([draw, draw]))
        expected = texts[0][chosen]
        assert batch.mask_BT.sum(dim=1).tolist() == [len(expected), 4]
        assert np.array_equal(batch.text_BTE[0, : len(expected)].numpy(), expected.astype(np.float32))
        assert np.array_equal(batch.text_BTE[1].numpy(), texts[1][0].astype(np.float32))
    assert dataset.batch([0]).mask_BT.sum() == 3


def test_training_draws_a_sample_s_captions_anew_in_each_epoch_by_their_weights(tmp_path: Path) -> None:
    samples, epochs = 8, 60
    write_several(tmp_path, [[1, 2]] * samples, [[1.0, 3.0]] * samples)
    dataset = EncodedDataset(tmp_path, "train")
    diffusion = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.0)
    whole, shares = [], []
    for step in range(epochs):
        batch = training_batch(dataset, diffusion, "diffusers", 0, step, samples)
        half = training_batch(dataset, diffusion, "diffusers", 0, step, samples, np.arange(4, 8))
        lengths = batch.mask_BT.sum(dim=1)
        assert torch.equal(half.mask_BT.sum(dim=1), lengths[4:])  # a rank draws what the whole batch draws
        whole.append(tuple(lengths.tolist()))
        shares.append((lengths == 2).float().mean().item())
    assert len(set(whole)) > epochs // 2
    count = samples * epochs
    assert abs(sum(shares) * samples - 0.75 * count) < 6 * (count * 0.75 * 0.25) ** 0.5


def test_every_caption_that_the_shards_keep_is_encoded_as_the_text_encoder_encodes_it(workspace: Params) -> None:
    kept = {"a red ring": 0.25, "two bars": 0.75}
    members = {"png": encode_png(np.zeros((32, 32, 3), np.uint8))}
    members["json"] = describe(32, 32, "a red ring", captions=list(kept.items()))
    folder = Path("several")
    folder.mkdir()
    write_index(
        folder, {split: write_split(folder, split, [Sample("k", members)], 4) for split in ("train", "heldout")}
    )
    Path("out").mkdir()
    encode_shards(Path("out"), workspace, "cpu", folder)
    dataset, encoder = EncodedDataset(Path("out"), "train"), load_text_encoder(paths.TEXT_ENCODER, "cpu")
    for draw, text in ((0.2, "a red ring"), (0.3, "two bars")):
        batch = dataset.batch([0], np.array([draw]))
        expected = encoder.encode([text])[0].to(torch.float16).float()
        assert torch.equal(batch.text_BTE[0], expected)


def test_batch_can_be_changed_without_changing_the_dataset(tmp_path: Path) -> None:
    write_encoded(tmp_path, [2, 2])
    dataset = EncodedDataset(tmp_path, "train")
    batch, again = dataset.batch([0, 1]), dataset.batch([0, 1])
    batch.latents_BCHW.zero_(), batch.text_BTE.zero_()
    for name in ("latents_BCHW", "text_BTE"):
        assert torch.equal(getattr(dataset.batch([0, 1]), name), getattr(again, name))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_npy_view_equals_numpys_own_reading(dtype: str) -> None:
    for shape in [(), (3,), (0, 4), (2, 3, 4)]:
        array = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
        data = to_npy(array)
        view = view_npy(memoryview(data), "here")
        assert view.dtype == array.dtype and view.shape == array.shape
        assert np.array_equal(view, np.load(io.BytesIO(data), allow_pickle=False))


def test_pickle_in_a_shard_is_refused_and_not_run(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"sample 7 is no plain \.npy array"):
        view_npy(memoryview(buffer.getvalue()), "sample 7")
    assert not (tmp_path / "ran").exists()


def test_array_that_is_cut_short_is_refused() -> None:
    data = to_npy(np.zeros((3, 4), np.float16))
    for length in range(len(data)):
        with pytest.raises(UserError, match="here is no plain"):
            view_npy(memoryview(data[:length]), "here")


def test_missing_null_text_is_named(tmp_path: Path) -> None:
    write_encoded(tmp_path, [1])
    (tmp_path / NULL_TEXT).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"null_text\.safetensors cannot be read"):
        EncodedDataset(tmp_path, "train")


def test_pictures_reach_the_autoencoder_between_minus_one_and_one() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3)).astype(np.uint8)
    pictures[0, 0, 0] = [0, 255, 51]
    tensor = to_unit_range(pictures)
    assert tensor.dtype == torch.float32 and tensor.shape == (2, 3, 3, 5)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert np.abs(tensor.numpy() - (pictures.transpose(0, 3, 1, 2) / 127.5 - 1)).max() < 1e-6


def test_encode_caches_what_the_encoders_give(workspace: Params) -> None:
    metrics = run_encode(workspace, Path("out"))
    autoencoder = load_autoencoder(paths.AUTOENCODER)
    text_encoder = load_text_encoder(paths.TEXT_ENCODER)
    latents = {}
    for split, count in (("train", 10), ("heldout", 3)):
        pictures, dataset = PictureDataset(paths.SHARDS, split), EncodedDataset(Path("out"), split)
        assert len(dataset) == metrics[f"{split}_samples"] == count and dataset.captions == pictures.captions
        batch = dataset.batch(range(count))
        latents[split] = batch.latents_BCHW
        for index, caption in enumerate(pictures.captions):
            latent = autoencoder.encode(to_unit_range(pictures.pictures([index])))[0]
            torch.testing.assert_close(batch.latents_BCHW[index], latent, atol=1e-3, rtol=2e-3)
            text = text_encoder.encode([caption])[0]
            assert batch.mask_BT[index].sum() == len(text) <= 9
            torch.testing.assert_close(batch.text_BTE[index, : len(text)], text, atol=1e-3, rtol=2e-3)
    torch.testing.assert_close(dataset.null_text, text_encoder.encode_null(), atol=1e-3, rtol=2e-3)
    assert metrics["latent_mean"] == pytest.approx(latents["train"].double().mean().item(), abs=1e-12)
    assert metrics["latent_std"] == pytest.approx(latents["train"].double().std(correction=0).item(), rel=1e-9)


def test_encoding_twice_gives_the_same_bytes(workspace: Params) -> None:
    outs = [Path("a"), Path("b")]
    assert run_encode(workspace, outs[0]) == run_encode(workspace, outs[1])
    names = sorted(path.name for path in outs[0].iterdir())
    shards = [
        f"{shard}.{kind}" for shard in ("heldout-00000", "train-00000", "train-00001") for kind in ("index.npy", "tar")
    ]
    assert names == sorted(["index.json", NULL_TEXT, *shards])
    assert all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in names)


def test_encoding_that_is_not_finite_stops_the_stage_and_names_the_sample(workspace: Params) -> None:
    autoencoder = load_autoencoder(paths.AUTOENCODER)
    autoencoder.network.register_to_config(scaling_factor=1e9)
    autoencoder.save(paths.AUTOENCODER)
    with pytest.raises(UserError, match="the latent of train sample 000000000 holds values that float16 cannot"):
        run_encode(workspace, Path("out"))


def test_picture_size_without_a_latent_stops_before_encoding(workspace: Params) -> None:
    odd = replace(workspace.shard, image_size=30)
    shard.write_scenes(paths.SHARDS, odd, seed=0)
    with pytest.raises(UserError, match="30x30 pixels has no latent"):
        run_encode(workspace, Path("out"))


def test_encoders_that_cannot_be_loaded_are_named(workspace: Params) -> None:
    (paths.TEXT_ENCODER / "config.json").write_text(json.dumps({"model_type": "none"}))
    with pytest.raises(UserError, match="outputs/text_encoder"):
        run_encode(workspace, Path("out"))
