"""Sections `autoencoder` and `text_encoder`: the frozen encoders, published or trained here."""

from dataclasses import dataclass

from model.numerics import Instruction, Precision
from tasks.params.checks import check, divides, positive


@dataclass(frozen=True)
class Autoencoder:
    """The deep-compression autoencoder: loaded from `path`, or a small one trained on the shards."""

    path: str | None
    latent_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        positive(self, "latent_channels", "layers_per_block", "steps", "batch_size", "learning_rate")
        check(len(self.block_channels) >= 2, "block_channels needs at least two entries (one halving of the picture)")


@dataclass(frozen=True)
class TextEncoder:
    """The decoder-only text encoder: loaded from `path`, or a small one trained on the captions."""

    path: str | None
    vocabulary: int
    hidden_size: int
    layers: int
    heads: int
    max_tokens: int
    instruction: Instruction
    precision: Precision
    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        positive(self, "vocabulary", "hidden_size", "layers", "heads", "max_tokens", "steps", "batch_size")
        positive(self, "learning_rate")
        divides(self, "hidden_size", "heads")
