"""Random access to the pictures that the stage `shard` wrote."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tasks.data.picture_files import decode_png
from tasks.data.shards import ShardReader
from tasks.system.errors import UserError


class PictureDataset:
    """One split of a folder of picture shards. A picture is decoded when it is asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        """Open the split `train` or `heldout`. Raises UserError if the folder has no such shards."""
        self._reader = ShardReader(folder, split)

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def captions(self) -> list[str]:
        """The caption of every picture."""
        return self._reader.captions

    @property
    def size_groups(self) -> list[np.ndarray]:
        """The indices of the pictures of each size. There is one group if all have the same size."""
        return self._reader.size_groups

    @property
    def sized(self) -> bool:
        """Whether the shards record each picture's size, as they do with aspect buckets."""
        return self._reader.sizes is not None

    def sizes(self) -> list[tuple[int, int]]:
        """Each (height, width) in pixels that occurs. One picture of each size is decoded for it."""
        return [self.pictures(group[:1]).shape[1:3] for group in self.size_groups]

    def of_size(self, height: int, width: int) -> np.ndarray:
        """The indices of the pictures of this size. If the shards record no sizes, the indices of all pictures."""
        if self._reader.sizes is None:
            return np.arange(len(self))
        return np.flatnonzero((self._reader.sizes == (height, width)).all(axis=1))

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`indices` cut into batches of pictures of one size each."""
        return self._reader.batches(indices, batch_size)

    def caption(self, index: int) -> str:
        """The caption of one picture."""
        return self._reader.record(index)["prompt"]

    def captions_with_weights(self, index: int) -> dict[str, float] | None:
        """The captions of one picture with their weights in an epoch's draw; None if the shards keep one of each."""
        captions = self._reader.record(index).get("captions")
        if captions is None:
            return None
        try:
            kept = {str(caption): float(weight) for caption, weight in captions}
        except (TypeError, ValueError, OverflowError):
            kept = {}
        if not kept or not all(weight >= 0 for weight in kept.values()) or not 0 < sum(kept.values()) < math.inf:
            raise UserError(f"{self._where(index)} has captions without weights: run the stage shard again")
        return kept

    def key(self, index: int) -> str:
        """The key of a picture in its shard."""
        return self._reader.key(index)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The pictures at `indices`, uint8 (B, H, W, 3). They must have one size.

        Raises UserError naming the first one that is damaged or has another size.
        """
        decoded = [self._decoded(int(index)) for index in indices]
        for index, picture in zip(indices, decoded, strict=True):
            if picture.shape != decoded[0].shape:
                found = f"{picture.shape[:2]}, not {decoded[0].shape[:2]}"
                raise UserError(f"{self._where(int(index))} has the size {found}: run the stage shard again")
        return np.stack(decoded)

    def squares(self, indices: Sequence[int] | np.ndarray, side: int) -> np.ndarray:
        """The pictures at `indices`, uint8 (B, side, side, 3). Those of other sizes are resized and cropped to fit."""
        if not self.sized:
            return self.pictures(indices)
        shown = (Image.fromarray(self._decoded(int(index))) for index in indices)
        return np.stack([np.asarray(ImageOps.fit(each, (side, side), Image.Resampling.LANCZOS)) for each in shown])

    def _decoded(self, index: int) -> np.ndarray:
        """The pixels of one picture. Raises UserError that names it if it is damaged."""
        data = self._reader.read(index, "png")
        try:
            picture = decode_png(data)
        except Exception as error:  # decoders of damaged files raise errors of many kinds
            raise UserError(f"{self._where(index)} is damaged ({error}): run the stage shard again") from None
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise UserError(f"{self._where(index)} is no RGB picture: run the stage shard again")
        return picture

    def _where(self, index: int) -> str:
        return f"{self._reader.folder}: picture {index} of {self._reader.split}"


def to_unit_range(pictures_BHW3: np.ndarray) -> Tensor:
    """uint8 pictures (B, H, W, 3) as the autoencoder takes them: float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures_BHW3).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
