"""Cached encodings of random numbers at any size, in the format of stage `encode`, written without webdataset.

Training reads them as it reads real ones. Shapes: C latent channels, S side of a latent, T text tokens, E caption
channels.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME
from tasks.data.indexed_shard import SpanRecorder
from tasks.data.npy_arrays import to_npy
from tasks.data.shards import SPANS, ShardEntry, describe, write_index
from tasks.system.files import write_bytes
from tasks.system.manifest import sha256_file, write_manifest

SHARD = 64  # samples


@dataclass(frozen=True)
class Encodings:
    """The sizes of a folder of encodings.

    The texts of a shard have from `text_tokens` down to `fewest_text_tokens`, or without it to half as many.
    """

    channels: int  # of a latent
    side: int  # of a latent
    text_tokens: int
    caption_channels: int
    train: int  # samples
    heldout: int
    fewest_text_tokens: int | None = None


def write_encodings(folder: Path, sizes: Encodings) -> None:
    """Write the splits `train` and `heldout`, the empty prompt and a manifest into a new folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = {
        split: [
            write_shard(folder / f"{split}-{start // SHARD:05d}.tar", sizes, min(SHARD, count - start), random)
            for start in range(0, count, SHARD)
        ]
        for split, count in (("train", sizes.train), ("heldout", sizes.heldout))
    }
    write_index(folder, splits)
    null = torch.from_numpy(random.standard_normal((sizes.text_tokens, sizes.caption_channels), np.float32)).half()
    save_file({NULL_TEXT_NAME: null}, folder / NULL_TEXT)
    write_manifest(folder)


def write_shard(path: Path, sizes: Encodings, count: int, random: np.random.Generator) -> ShardEntry:
    """One shard of `count` samples with its index; returns what `index.json` says of it."""
    spans = SpanRecorder()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, members in enumerate(samples(sizes, path.stem, count, random)):
            begin = tar.offset
            for extension in sorted(members):
                header = tarfile.TarInfo(f"{number:04d}.{extension}")
                header.size = len(members[extension])
                tar.addfile(header, io.BytesIO(members[extension]))
            spans.add(begin, tar.offset, members)
    index = path.with_suffix(SPANS)
    write_bytes(index, to_npy(spans.array()))
    return ShardEntry(path.name, count, path.stat().st_size, sha256_file(path), index.name, spans.members)


def text_tokens(sizes: Encodings, number: int, count: int) -> int:
    """The length of the text of sample `number` of a shard of `count`."""
    most, fewest = sizes.text_tokens, sizes.fewest_text_tokens
    if fewest is None:
        return most - number * most // (2 * count)
    return most - number * (most - fewest) // max(count - 1, 1)


def samples(sizes: Encodings, shard: str, count: int, random: np.random.Generator) -> Iterator[dict[str, bytes]]:
    """The members of `count` samples of a shard by extension; each has a caption of its own."""
    for number in range(count):
        latent = random.standard_normal((sizes.channels, sizes.side, sizes.side), np.float32)
        tokens = text_tokens(sizes, number, count)
        text = random.standard_normal((tokens, sizes.caption_channels), np.float32)
        yield {
            "latent.npy": to_npy(latent.astype(np.float16)),
            "text.npy": to_npy(text.astype(np.float16)),
            "json": describe(32 * sizes.side, 32 * sizes.side, f"a photo of thing {number} of {shard}"),
        }
