"""The pictures of the stage `shard`, by random access."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.data.images import decode_png
from tasks.data.shards import ShardReader


class PictureDataset:
    """One split of a folder of picture shards: captions, and pictures decoded when asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        """Open the split `train` or `heldout`. Raises UserError if the folder has no such shards."""
        self._reader = ShardReader(folder, split)

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def captions(self) -> list[str]:
        """The caption of every picture."""
        return self._reader.captions

    def key(self, index: int) -> str:
        """The key of a picture in its shard."""
        return self._reader.key(index)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The pictures at `indices`, uint8 (B, H, W, 3)."""
        return np.stack([decode_png(self._reader.read(int(index), "png")) for index in indices])


def to_unit_range(pictures_BHW3: np.ndarray) -> Tensor:
    """uint8 pictures as the autoencoder takes them: float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures_BHW3).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
