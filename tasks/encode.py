"""Stage `encode`: encodes every picture and caption once with the frozen encoders, so that training runs neither.

It writes shards of latents and text embeddings in float16 (see tasks/data/encoded_samples.py), and the embedding of the
empty prompt. Training uses the empty prompt for dropped captions, and guidance for its unconditional half.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from model.autoencoder import Autoencoder, load_autoencoder
from model.text_encoder import TextEncoder, load_text_encoder
from tasks.data.encoded_samples import LENGTHS, NULL_TEXT, NULL_TEXT_NAME, WEIGHTS
from tasks.data.npy_arrays import to_npy
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.shards import SPLITS, Sample, describe, write_index, write_split
from tasks.data.stage_models import loading_models
from tasks.params.experiment_params import Params
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_bytes
from tasks.system.progress import progress


class Moments:
    """Running mean and standard deviation of many arrays' values, summed in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in an array of any shape."""
        exact = values.astype(np.float64)
        self.count += exact.size
        self.total += float(exact.sum())
        self.squares += float(np.square(exact).sum())

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        return max(self.squares / self.count - self.mean**2, 0.0) ** 0.5


def run(context: Context, data_set: str | None = None) -> Metrics:
    """Encode the shards of the section `shard`, or of a set in `data.sets`, with the encoders of the workspace."""
    return encode_shards(context.out, context.params, context.device, paths.shards(data_set))


def encode_shards(out: Path, params: Params, device: str, shards: Path = paths.SHARDS) -> Metrics:
    """Encode both splits; returns counts, and the training latents' mean and deviation.

    Of the pictures that the autoencoder was scaled on, they should be 0 and 1.
    """
    autoencoder, text_encoder = load_encoders(device, shards)
    moments = {split: Moments() for split in SPLITS}
    splits = {}
    with torch.inference_mode():
        null_text = torch.from_numpy(to_half(text_encoder.encode_null(), "the embedding of the empty prompt"))
        write_bytes(out / NULL_TEXT, save({NULL_TEXT_NAME: null_text}))
        for split in SPLITS:
            pictures = PictureDataset(shards, split)
            samples = encode(pictures, autoencoder, text_encoder, params.encode.batch_size, moments[split], split)
            splits[split] = write_split(out, split, samples, params.encode.samples_per_shard)
    write_index(out, splits)
    counts = {f"{split}_samples": sum(entry.samples for entry in splits[split]) for split in SPLITS}
    return {**counts, "latent_mean": moments["train"].mean, "latent_std": moments["train"].std}


def load_encoders(device: str, shards: Path) -> tuple[Autoencoder, TextEncoder]:
    """The frozen encoders. Raises UserError if one cannot be loaded, or if the shards' pictures do not suit it."""
    with loading_models():
        autoencoder = load_autoencoder(paths.AUTOENCODER, device)
        for split in SPLITS:
            for height, width in PictureDataset(shards, split).sizes():
                autoencoder.check_size(height, width)
        return autoencoder, load_text_encoder(paths.TEXT_ENCODER, device)


def encode(
    pictures: PictureDataset,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    batch_size: int,
    moments: Moments,
    label: str,
) -> Iterator[Sample]:
    """The encoded sample of every picture, size by size, and within a size in the shards' order.

    Raises UserError naming the sample if an encoding is not finite.
    """
    with progress(f"encode {label}", len(pictures)) as meter:
        for indices in pictures.batches(np.arange(len(pictures)), batch_size):
            keys = [pictures.key(index) for index in indices.tolist()]
            captions = [pictures.caption(index) for index in indices.tolist()]
            several = [pictures.captions_with_weights(index) for index in indices.tolist()]
            batch = pictures.pictures(indices)
            height, width = batch.shape[1:3]
            texts = encode_distinct(text_encoder, [text for one in several for text in one or ()] or captions)
            latents = autoencoder.encode(to_unit_range(batch).to(autoencoder.device))
            for key, caption, weights, latent in zip(keys, captions, several, latents, strict=True):
                half = to_half(latent, f"the latent of {label} sample {key}")
                moments.add(half)
                named = f"the text of {label} sample {key}"
                encodings = [to_half(texts[text], named) for text in weights or [caption]]
                members = {
                    "latent.npy": to_npy(half),
                    "text.npy": to_npy(np.concatenate(encodings)),
                    "json": describe(height, width, caption),
                }
                if weights is not None:
                    members[LENGTHS] = to_npy(np.array([len(encoding) for encoding in encodings], np.int32))
                    members[WEIGHTS] = to_npy(np.array([*weights.values()], np.float64))
                yield Sample(key, members, (height, width) if pictures.sized else None)
            meter.advance(len(indices))


def encode_distinct(text_encoder: TextEncoder, captions: list[str]) -> dict[str, Tensor]:
    """The embedding of each distinct caption. Captions that repeat are encoded once."""
    distinct = list(dict.fromkeys(captions))
    return dict(zip(distinct, text_encoder.encode(distinct), strict=True))


def to_half(values: Tensor, what: str) -> np.ndarray:
    """`values` as a float16 array. Raises UserError naming `what` if one is not finite or too large for float16."""
    half = values.to("cpu", torch.float16).contiguous().numpy()
    if not np.isfinite(half).all():
        raise UserError(f"{what} holds values that float16 cannot: check the autoencoder and text encoder of this run")
    return half


if __name__ == "__main__":
    stage_command("encode", __doc__)
