"""The cached encodings that training reads: latents and text embeddings in shards, by random access.

A sample is `<key>.latent.npy` (float16 C, H, W, scaled as the network takes it; of pictures in aspect buckets H and W
differ), `<key>.text.npy` (float16 T, E, no padding) and `<key>.json`; `null_text.safetensors` holds the embedding of
the empty prompt as `text_TE`, float16 too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.data.npy_arrays import view_npy
from tasks.data.shards import ShardReader
from tasks.system.errors import UserError

NULL_TEXT = "null_text.safetensors"
NULL_TEXT_NAME = "text_TE"


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of samples.

    Latents are float32 (B, C, H, W), text float32 (B, T, E) and 0 behind each prompt, mask bool (B, T) and true on it.
    """

    latents_BCHW: Tensor
    text_BTE: Tensor
    mask_BT: Tensor


class EncodedDataset:
    """One split of a folder of encoded shards. `latent_shape` is of its first sample; a batch must be of one shape."""

    def __init__(self, folder: Path, split: str) -> None:
        """Open the split `train` or `heldout`. Raises UserError if the folder has no such shards or no null text."""
        self._reader = ShardReader(folder, split)
        self.null_text = _load_null_text(Path(folder) / NULL_TEXT)
        self.latent_shape: tuple[int, int, int] = self._array(0, "latent.npy").shape

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def captions(self) -> list[str]:
        """The caption of every sample."""
        return self._reader.captions

    @property
    def shape_groups(self) -> list[np.ndarray]:
        """The indices of the samples of each latent shape; one group where all are of one shape."""
        return self._reader.size_groups

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`indices` cut into batches of one shape each, by shape; in the given order within each shape."""
        return self._reader.batches(indices, batch_size)

    def batch(self, indices: Sequence[int] | np.ndarray) -> EncodedBatch:
        """The samples at `indices`, which are of one latent shape, text padded on the right to the longest of them."""
        latents = np.stack([self._array(int(index), "latent.npy") for index in indices]).astype(np.float32)
        texts = [self._array(int(index), "text.npy") for index in indices]
        lengths = np.array([len(text) for text in texts])
        padded = np.zeros((len(texts), lengths.max(), texts[0].shape[1]), np.float32)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = text
        mask = np.arange(lengths.max()) < lengths[:, None]
        return EncodedBatch(torch.from_numpy(latents), torch.from_numpy(padded), torch.from_numpy(mask))

    def _array(self, index: int, extension: str) -> np.ndarray:
        where = f"{self._reader.folder}: sample {index} of {self._reader.split}, member .{extension}"
        return view_npy(self._reader.read(index, extension), where)


def _load_null_text(path: Path) -> Tensor:
    """The embedding of the empty prompt, float32 (T, E)."""
    try:
        return load_file(path)[NULL_TEXT_NAME].float()
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the stage encode again") from None
