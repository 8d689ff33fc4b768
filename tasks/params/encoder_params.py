"""Sections `autoencoder` and `text_encoder`: the frozen encoders, published or trained here."""

from dataclasses import dataclass

from model.numerics import Instruction, Precision
from tasks.params.checks import check, divides, positive


@dataclass(frozen=True)
class Autoencoder:
    """The deep-compression autoencoder: it is loaded from `path`, or a small one is trained on the shards."""

    path: str | None
    """Folder with a diffusers AutoencoderDC; null trains a small one on the shards.

    The paper's is DC-AE f32c32: 512 pixels become 16x16 latents of 32 channels (SANA section 2.1).
    """
    latent_channels: int
    """Channels of a latent. The last of `block_channels` must be a multiple of it."""
    block_channels: tuple[int, ...]
    """Channels at each level; the i-th level (from 0) has 1/2^(i+1) of the picture's side.

    A trained autoencoder needs at least two levels, and each level's side halves the one before.
    """
    layers_per_block: int
    """Number of layers at each level of a trained autoencoder."""
    steps: int
    """Number of training steps."""
    batch_size: int
    """Number of pictures in a training batch."""
    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self) -> None:
        positive(self, "latent_channels", "layers_per_block", "steps", "batch_size", "learning_rate")
        check(len(self.block_channels) >= 2, "block_channels needs at least two entries (one halving of the picture)")


@dataclass(frozen=True)
class TextEncoder:
    """The decoder-only text encoder: it is loaded from `path`, or a small one is trained on the captions."""

    path: str | None
    """Folder with a Gemma-2 model and its tokenizer; null trains a small one on the captions.

    SANA's encoder is a decoder-only model of 2304 channels (SANA section 2.3).
    """
    vocabulary: int
    """Number of tokens that a trained tokenizer knows, with the 256 bytes and 3 special tokens."""
    hidden_size: int
    """Channels of a trained encoder's states; a multiple of `heads`."""
    layers: int
    """Number of layers of a trained encoder."""
    heads: int
    """Number of attention heads of a trained encoder."""
    max_tokens: int
    """Most tokens of a prompt; longer prompts are cut. It is 300 at paper scale."""
    instruction: Instruction
    """Words before a prompt, for a model tuned to follow instructions: none or sana.

    `sana` is SANA's complex human instruction (SANA section 2.3).
    """
    precision: Precision
    """Number format of the weights in use: stored, bfloat16, int8 or int4.

    `stored` is the folder's own; int8 and int4 go through bitsandbytes.
    """
    steps: int
    """Number of training steps."""
    batch_size: int
    """Number of captions in a training batch."""
    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self) -> None:
        positive(self, "vocabulary", "hidden_size", "layers", "heads", "max_tokens", "steps", "batch_size")
        positive(self, "learning_rate")
        divides(self, "hidden_size", "heads")
