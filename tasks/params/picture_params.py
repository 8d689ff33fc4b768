"""Sections `shard` and `encode`: source pictures, and how they and their encodings are stored."""

from dataclasses import dataclass
from typing import Literal

from tasks.params.checks import check, positive


@dataclass(frozen=True)
class Shard:
    """Source pictures and how they are written to shards."""

    source: Literal["scenes", "folder", "webdataset", "sana"]
    """Where pictures come from: scenes, folder, webdataset or sana.

    `scenes` are rendered here, `folder` holds images with captions, `webdataset` is shards, and `sana` is shards as
    SANA's published training code reads them.
    """
    path: str | None
    """Path of the folder of pictures or of shards; null for rendered scenes."""
    image_size: int
    """Side of a training picture in pixels. A picture is resized to cover the square and centre-cropped."""
    aspect_buckets: bool
    """Whether own pictures are cropped to the nearest of 40 sizes instead of to the square.

    All 40 have nearly the area of an image_size square, which must then be a multiple of 16.
    """
    train_samples: int
    """Number of training scenes; other sources use all that they hold."""
    heldout_samples: int
    """Number of held-out samples, which no training sees; for own pictures an upper limit.

    Scenes are rendered with a seed of their own for them; other sources choose them by a hash of the key. Of own
    pictures a tenth is held out, or 100 if that is more, but never more than half of them and never more than this
    number.
    """
    samples_per_shard: int
    """Number of samples in a shard of pictures."""
    max_pixels: int
    """Largest number of pixels of a source picture; a larger one is rejected."""
    max_reject_share: float
    """Largest share of rejected pictures, in [0, 1); the stage fails above it."""
    caption_suffixes: tuple[str, ...]
    """Suffixes of the files with further captions and CLIP scores beside a shard (sana only).

    One of a picture's captions is drawn by its CLIP score (SANA section 3.2).
    """
    caption_score_threshold: float
    """Least CLIP score of a caption that may be drawn (sana only)."""
    caption_temperature: float
    """Temperature t of the draw: probability is proportional to score^(1/t) (sana only)."""

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
    """Number of pictures that the encoders take at once."""
    samples_per_shard: int
    """Number of samples in a shard of latents and text embeddings."""

    def __post_init__(self) -> None:
        positive(self, "batch_size", "samples_per_shard")
