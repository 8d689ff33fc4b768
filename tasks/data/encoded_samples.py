"""The cached encodings that training reads: latents and text embeddings in shards, by random access.

A sample is `<key>.latent.npy` (float16 (C, H, W), scaled as the network takes it), `<key>.text.npy` (float16 (T, E),
without padding) and `<key>.json`. With aspect buckets, H and W differ between samples. `null_text.safetensors` holds
the embedding of the empty prompt as `text_TE`, also in float16.

If several captions of a picture are kept, `<key>.text.npy` has their embeddings one behind the other.
`<key>.text_lengths.npy` has their numbers of tokens (int32), and `<key>.text_weights.npy` the weights with which an
epoch draws one of them (float64). The first is the caption in the json.

Shapes: B samples, C latent channels, H and W of a latent, T text tokens, E caption channels. S is the sum of the tokens
of the texts of a batch.

A number that is not finite ends the stage that reads it, with the sample's name. Held-out samples are looked at when
they are read. Training looks at the samples of a step only after its loss or gradient was not finite
(`tasks.training.refused_step`): a NaN in a sample always shows there, and each step would pay for the look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.finite_numbers import is_finite
from tasks.data.npy_arrays import view_npy
from tasks.data.sample_order import ShardedSamples
from tasks.data.shards import ShardReader
from tasks.system.errors import UserError

NULL_TEXT = "null_text.safetensors"
NULL_TEXT_NAME = "text_TE"
LENGTHS, WEIGHTS = "text_lengths.npy", "text_weights.npy"
NOT_FINITE = "not finite: run the stage that writes the folder again"


class StoredBatch(NamedTuple):
    """A batch of samples as they are stored, which is how it travels from a worker process and to the device.

    Latents (B, C, H, W) and texts (S, E) have the dtype of the shards. The texts lie one behind the other, without
    padding, and `lengths` has their numbers of tokens.
    """

    latents_BCHW: Tensor
    texts_SE: Tensor
    lengths: list[int]

    def padded(self, device: str = "cpu") -> "EncodedBatch":
        """The batch on `device` in float32, each text padded on the right to the longest."""
        # The host knows the longest, so nothing here waits for the device.
        places_T = torch.arange(max(self.lengths), device=device)
        lengths_B = torch.tensor(self.lengths).to(device, non_blocking=True)
        starts_B = lengths_B.cumsum(0) - lengths_B
        mask_BT = places_T < lengths_B[:, None]
        rows_BT = torch.where(mask_BT, starts_B[:, None] + places_T, 0)
        text_BTE = self.texts_SE.to(device, non_blocking=True)[rows_BT].float()
        text_BTE.masked_fill_(~mask_BT[..., None], 0.0)
        return EncodedBatch(self.latents_BCHW.to(device, non_blocking=True).float(), text_BTE, mask_BT)

    def broken_rows(self) -> dict[int, str]:
        """The rows that hold a NaN or an infinity, each with the member of its sample that does.

        The whole batch is looked at first, and its rows only if it holds such a number.
        """
        if bool(is_finite(self.latents_BCHW) & is_finite(self.texts_SE)):
            return {}
        members = {"latent.npy": self.latents_BCHW, "text.npy": self.texts_SE.split(self.lengths)}
        return {
            row: member
            for member, rows in members.items()
            for row, numbers in enumerate(rows)
            if not is_finite(numbers)
        }


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
        """Open the split `train` or `heldout`.

        Raises UserError if the folder has no such shards, or no null text of finite numbers.
        """
        self._folder, self._split = folder, split
        self._reader = ShardReader(folder, split)
        self.null_text = _load_null_text(Path(folder) / NULL_TEXT)
        self.latent_shape: tuple[int, int, int] = self._arrays(0, ("latent.npy",))[0].shape
        self.several_captions = LENGTHS in self._reader.members
        if self.null_text.ndim != 2 or not len(self.null_text):
            shape = tuple(self.null_text.shape)
            raise UserError(f"{Path(folder) / NULL_TEXT} has the shape {shape}: run the stage encode again")

    def __reduce__(self) -> tuple[type["EncodedDataset"], tuple[Path, str]]:
        """A worker process that is not forked opens the folder anew."""
        return EncodedDataset, (self._folder, self._split)

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def captions(self) -> list[str]:
        """The caption of every sample."""
        return self._reader.captions

    @property
    def sharded_groups(self) -> list[ShardedSamples]:
        """The samples of each latent shape in the order in which training sees them, shape by shape."""
        return self._reader.sharded_groups

    @property
    def shape_groups(self) -> list[np.ndarray]:
        """The indices of the samples of each latent shape. There is one group if all have the same shape."""
        return self._reader.size_groups

    @cached_property
    def longest_text(self) -> int:
        """The number of tokens of the longest text among the samples' first captions."""
        return max(len(self._sample(index, 0.0)[1]) for index in range(len(self)))

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`indices` cut into batches of one shape each, shape by shape. Within a shape they keep the given order."""
        return self._reader.batches(indices, batch_size)

    def batch(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray | None = None) -> EncodedBatch:
        """The samples at `indices`, which must have one latent shape. Text is padded on the right to the longest.

        `draws` are numbers in [0, 1), one for each sample, by which one of its captions is drawn. Without them it is
        the first one. Raises UserError that names the first sample with a number that is not finite.
        """
        stored = self.stored(indices, draws)
        for row, member in stored.broken_rows().items():
            raise UserError(f"{self.place(int(indices[row]))} holds numbers in its .{member} that are {NOT_FINITE}")
        return stored.padded()

    def place(self, index: int) -> str:
        """Where a sample lies, for messages: the file of its shard, its number in the split, and its key."""
        return self._reader.place(index)

    def stored(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray | None = None) -> StoredBatch:
        """The samples at `indices` as they are stored. `draws` are those of `batch`."""
        draws = np.zeros(len(indices)) if draws is None else draws
        samples = [self._sample(int(index), draw) for index, draw in zip(indices, draws, strict=True)]
        latents, texts = zip(*samples, strict=True)
        for index, latent, text in zip(indices, latents, texts, strict=True):
            self._check(int(index), (latent.shape, text.shape[1]) == (latents[0].shape, texts[0].shape[1]))
        return StoredBatch(
            torch.from_numpy(np.stack(latents)),
            torch.from_numpy(np.concatenate(texts)),
            [len(text) for text in texts],
        )

    def _sample(self, index: int, draw: float) -> tuple[np.ndarray, np.ndarray]:
        """The latent of a sample, and the text (T, E) of the caption that `draw` falls on.

        The weights of a sample's captions divide [0, 1). Raises UserError if the arrays do not fit each other.
        """
        if not self.several_captions:
            latent, text = self._arrays(index, ("latent.npy", "text.npy"))
            self._check(index, _are_encodings(latent, text))
            return latent, text
        latent, text, lengths, weights = self._arrays(index, ("latent.npy", "text.npy", LENGTHS, WEIGHTS))
        self._check(index, _are_encodings(latent, text) and _are_parts(text, lengths, weights))
        ends, shares = np.cumsum(lengths), np.cumsum(weights)
        if not np.isfinite(shares[-1]):  # by a NaN no caption could be drawn, and the last would be taken each time
            raise UserError(f"{self.place(index)} holds numbers in its .{WEIGHTS} that are {NOT_FINITE}")
        chosen = min(int(np.searchsorted(shares, draw * shares[-1], side="right")), len(ends) - 1)
        return latent, text[ends[chosen - 1] if chosen else 0 : ends[chosen]]

    def _check(self, index: int, whole: bool) -> None:
        if not whole:
            where = f"{self._reader.folder}: sample {index} of {self._reader.split}"
            raise UserError(f"{where} has arrays of other kinds or shapes: run the stage encode again")

    def _arrays(self, index: int, extensions: Sequence[str]) -> list[np.ndarray]:
        """Members of a sample, as read-only views of what was read."""
        where = f"{self._reader.folder}: sample {index} of {self._reader.split}, member"
        read = self._reader.read_members(index, extensions)
        return [view_npy(data, f"{where} .{extension}") for data, extension in zip(read, extensions, strict=True)]


STORED = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
"""Kinds of numbers that latents and texts may have. The stage encode writes the first."""


def _are_encodings(latent: np.ndarray, text: np.ndarray) -> bool:
    """Whether a latent (C, H, W) and a text (T, E) are numbers that the network can read."""
    return (latent.ndim, text.ndim) == (3, 2) and latent.dtype in STORED and text.dtype in STORED and text.size > 0


def _are_parts(text: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> bool:
    """Whether the numbers of tokens of the captions are those of the text, and each caption has a weight."""
    if lengths.dtype != np.int32 or weights.dtype != np.float64 or lengths.shape != weights.shape or lengths.ndim != 1:
        return False
    counted = (lengths > 0).all() and lengths.sum() == len(text)
    return bool(counted and not (weights < 0).any() and weights.sum() != 0)


def _load_null_text(path: Path) -> Tensor:
    """The embedding of the empty prompt, float32 (T, E)."""
    try:
        null_TE = load_file(path)[NULL_TEXT_NAME].float()
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the stage encode again") from None
    if not is_finite(null_TE):
        raise UserError(f"{path} holds numbers that are {NOT_FINITE}")
    return null_TE
