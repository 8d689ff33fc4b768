"""The cached encodings that training reads: latents and text embeddings in shards, by random access.

A sample is `<key>.latent.npy` (float16 (C, H, W), scaled as the network takes it), `<key>.text.npy` (float16 (T, E),
without padding) and `<key>.json`. With aspect buckets, H and W differ between samples. `null_text.safetensors` holds
the embedding of the empty prompt as `text_TE`, also in float16.

If several captions of a picture are kept, `<key>.text.npy` has their embeddings one behind the other.
`<key>.text_lengths.npy` has their numbers of tokens (int32), and `<key>.text_weights.npy` the weights with which an
epoch draws one of them (float64). The first is the caption in the json.

Shapes: B samples, C latent channels, H and W of a latent, T text tokens, E caption channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
LENGTHS, WEIGHTS = "text_lengths.npy", "text_weights.npy"


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of samples.

    Latents are float32 (B, C, H, W). Text is float32 (B, T, E), and 0 behind the end of each prompt. The mask is bool
    (B, T), and true where there is text.
    """

    latents_BCHW: Tensor
    text_BTE: Tensor
    mask_BT: Tensor


class EncodedDataset:
    """One split of a folder of encoded shards.

    All samples of a batch must have latents of one shape. `latent_shape` is the shape of the first sample's latent.
    `several_captions` says whether a sample may have more than one caption.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Open the split `train` or `heldout`. Raises UserError if the folder has no such shards or no null text."""
        self._reader = ShardReader(folder, split)
        self.null_text = _load_null_text(Path(folder) / NULL_TEXT)
        self.latent_shape: tuple[int, int, int] = self._array(0, "latent.npy").shape
        self.several_captions = LENGTHS in self._reader.members

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def captions(self) -> list[str]:
        """The caption of every sample."""
        return self._reader.captions

    @property
    def shape_groups(self) -> list[np.ndarray]:
        """The indices of the samples of each latent shape. There is one group if all have the same shape."""
        return self._reader.size_groups

    @cached_property
    def longest_text(self) -> int:
        """The number of tokens of the longest text among the samples' first captions."""
        return max(len(self._text(index, 0.0)) for index in range(len(self)))

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`indices` cut into batches of one shape each, shape by shape. Within a shape they keep the given order."""
        return self._reader.batches(indices, batch_size)

    def batch(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray | None = None) -> EncodedBatch:
        """The samples at `indices`, which must have one latent shape. Text is padded on the right to the longest.

        `draws` are numbers in [0, 1), one for each sample, by which one of its captions is drawn. Without them it is
        the first one.
        """
        latents = np.stack([self._array(int(index), "latent.npy") for index in indices]).astype(np.float32)
        draws = np.zeros(len(indices)) if draws is None else draws
        texts = [self._text(int(index), draw) for index, draw in zip(indices, draws, strict=True)]
        lengths = np.array([len(text) for text in texts])
        padded = np.zeros((len(texts), lengths.max(), texts[0].shape[1]), np.float32)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = text
        mask = np.arange(lengths.max()) < lengths[:, None]
        return EncodedBatch(torch.from_numpy(latents), torch.from_numpy(padded), torch.from_numpy(mask))

    def _text(self, index: int, draw: float) -> np.ndarray:
        """The text (T, E) of the caption that `draw` falls on. The weights of a sample's captions divide [0, 1)."""
        text = self._array(index, "text.npy")
        if not self.several_captions:
            return text
        ends = np.cumsum(self._array(index, LENGTHS))
        shares = np.cumsum(self._array(index, WEIGHTS))
        chosen = min(int(np.searchsorted(shares, draw * shares[-1], side="right")), len(ends) - 1)
        return text[ends[chosen - 1] if chosen else 0 : ends[chosen]]

    def _array(self, index: int, extension: str) -> np.ndarray:
        """A member of a sample as a read-only view of the shard."""
        where = f"{self._reader.folder}: sample {index} of {self._reader.split}, member .{extension}"
        return view_npy(self._reader.read(index, extension), where)


def _load_null_text(path: Path) -> Tensor:
    """The embedding of the empty prompt, float32 (T, E)."""
    try:
        return load_file(path)[NULL_TEXT_NAME].float()
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the stage encode again") from None
