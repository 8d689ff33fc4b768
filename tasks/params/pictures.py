"""Sections `shard` and `encode`: source pictures, and how they and their encodings are stored."""

from dataclasses import dataclass
from typing import Literal

from tasks.params.checks import check, positive


@dataclass(frozen=True)
class Shard:
    """Source pictures and how they are written to shards."""

    source: Literal["scenes", "folder", "webdataset", "sana"]
    path: str | None
    image_size: int
    aspect_buckets: bool
    train_samples: int
    heldout_samples: int
    samples_per_shard: int
    max_pixels: int
    max_reject_share: float
    caption_suffixes: tuple[str, ...]
    caption_score_threshold: float
    caption_temperature: float

    def __post_init__(self) -> None:
        positive(self, "image_size", "train_samples", "heldout_samples", "samples_per_shard", "max_pixels")
        check(0 <= self.max_reject_share < 1, f"max_reject_share is {self.max_reject_share}: it must be in [0, 1)")
        check(
            (self.source == "scenes") == (self.path is None),
            f"path is {self.path!r} with source {self.source}: scenes take no path, all others need one",
        )
        check(
            not self.aspect_buckets or self.image_size % 16 == 0,
            f"image_size is {self.image_size}: with aspect_buckets it must be a multiple of 16",
        )
        positive(self, "caption_score_threshold", "caption_temperature")


@dataclass(frozen=True)
class Encode:
    """How latents and text embeddings are cached."""

    batch_size: int
    samples_per_shard: int

    def __post_init__(self) -> None:
        positive(self, "batch_size", "samples_per_shard")
