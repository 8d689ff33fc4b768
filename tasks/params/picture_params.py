"""Sections `shard`, `data` and `encode`: source pictures, and how they and their encodings are stored."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from tasks.params.checks import check, positive

SceneTask = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
SANA_ONLY = {"caption_proportions": {}, "captions_per_sample": 1, "min_caption_score": None, "min_prompt_score": None}
"""Keys that only pictures of source sana can have, each with the value that asks for nothing."""


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
    caption_proportions: dict[str, float]
    """Weight of each type of caption in the draw; {} draws by score (sana only).

    An example is {prompt: 1, VILA1-5-13B: 3}. The published code calls this rule `proportion`. Types that a picture has
    no caption of are left out of its draw.
    """
    captions_per_sample: int
    """Most captions kept of a picture, of which each epoch draws one anew (sana only).

    With 1, a caption is drawn when the shards are written, and every epoch sees it. Each further caption costs the
    space of its text encoding, which is most of what a sample takes.
    """
    min_caption_score: float | None
    """Least CLIP score of a picture's best caption, or the picture is left out (sana only).

    With null all pictures are kept. A picture without any score is left out too. SANA-1.5 fine-tunes on pairs above 25
    (table 4).
    """
    min_prompt_score: float | None
    """Least CLIP score of a picture's prompt, or the picture is left out (sana only).

    With null all pictures are kept. A prompt without a score stays. The published configurations of SANA-1.5 leave out
    what is below 22.
    """
    scene_tasks: tuple[SceneTask, ...]
    """Tasks of GenEval whose scenes are rendered; [] renders those of all (scenes only)."""

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
        positive(self, "caption_score_threshold", "caption_temperature", "captions_per_sample")
        for name in self.caption_proportions:
            check(isinstance(name, str), f"caption_proportions has the key {name!r}: put it in quotes")
        check(
            all(weight >= 0 for weight in self.caption_proportions.values()),
            f"caption_proportions is {self.caption_proportions}: each weight must be 0 or above",
        )
        check(
            self.source == "scenes" or not self.scene_tasks,
            f"scene_tasks is {list(self.scene_tasks)} with source {self.source}: it is for source scenes only",
        )
        for key, unused in SANA_ONLY.items():
            value = getattr(self, key)
            check(
                self.source == "sana" or value == unused,
                f"{key} is {value!r} with source {self.source}: it is for source sana only",
            )


@dataclass(frozen=True)
class Data:
    """Data sets beside the one of `shard`. A section of training names the set that it learns from."""

    sets: dict[str, dict[str, Any]]
    """Further data sets by name, each with the keys of `shard` in which it differs.

    {sft: {path: data/sft}} is a set that a section learns from with `data: encoded-sft`. A set is built if a section
    that has work to do names it. All sets have the autoencoder and the text encoder of the set of `shard`.
    """

    def __post_init__(self) -> None:
        for name in self.sets:
            check(
                re.fullmatch(r"[a-z][a-z0-9_]*", str(name)) is not None,
                f"sets has the name {name!r}: it must begin with a small letter and go on with these, digits and _",
            )


@dataclass(frozen=True)
class Encode:
    """How latents and text embeddings are cached."""

    batch_size: int
    """Number of pictures that the encoders take at once."""
    samples_per_shard: int
    """Number of samples in a shard of latents and text embeddings."""

    def __post_init__(self) -> None:
        positive(self, "batch_size", "samples_per_shard")
