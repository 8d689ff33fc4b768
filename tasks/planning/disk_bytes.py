"""Bytes on disk: shards, cached encodings, checkpoints, state to resume from, pools of pictures.

Headers of safetensors, JSON beside them, and logs are left out: they are kilobytes each.
"""

from math import ceil, prod

from model.network import NetworkConfig
from tasks.data.shards import describe
from tasks.planning.training_memory import optimizer_bytes
from tasks.training.generation_writer import KEPT_GENERATIONS

TAR_BLOCK = 512  # a member is a header of one block and its bytes in whole blocks
TAR_END = 2 * TAR_BLOCK
TAR_RECORD = 20 * TAR_BLOCK  # a tar is a whole number of these
NPY_HEADER = 128
FLOAT16_BYTES = 2
VERDICT_BYTES = 1 + 8 + 8  # whether a picture is correct, and the judge's scores for its own and another prompt


def member_bytes(size: float) -> int:
    """The bytes of a tar member whose content has `size` bytes."""
    return TAR_BLOCK * (1 + ceil(size / TAR_BLOCK))


def npy_bytes(*shape: int) -> int:
    """The bytes of a float16 array of this shape as `.npy`."""
    return NPY_HEADER + FLOAT16_BYTES * prod(shape)


def encoded_sample_bytes(
    image_size: int, latent: tuple[int, int, int], caption: str, text_tokens: int, channels: int
) -> int:
    """The bytes of a sample of the stage `encode`: latent (C, H, W), text without padding, and record."""
    arrays = member_bytes(npy_bytes(*latent)) + member_bytes(npy_bytes(text_tokens, channels))
    return arrays + record_bytes(image_size, caption)


def caption_weights_bytes(captions: int) -> int:
    """The bytes of the members with the lengths (int32) and weights (float64) of a sample's several captions."""
    return member_bytes(NPY_HEADER + 4 * captions) + member_bytes(NPY_HEADER + 8 * captions)


def record_bytes(image_size: int, caption: str) -> int:
    """The bytes of a sample's record as a member. It holds the size of its picture and its caption."""
    return member_bytes(len(describe(image_size, image_size, caption)))


def shards_bytes(samples: int, sample_bytes: float, samples_per_shard: int) -> int:
    """The bytes of shards, given the mean bytes of a sample."""
    whole, rest = divmod(samples, samples_per_shard)
    return whole * _tar(samples_per_shard * sample_bytes) + (_tar(rest * sample_bytes) if rest else 0)


def _tar(members: float) -> int:
    return TAR_RECORD * ceil((members + TAR_END) / TAR_RECORD)


def state_bytes(optimizer: str, config: NetworkConfig, weights: int) -> int:
    """The bytes of the state that training resumes from: all generations kept, and the one being written.

    `weights` are the bytes of the weights and their average. The optimizer's state is added to them.
    """
    return (KEPT_GENERATIONS + 1) * (weights + optimizer_bytes(optimizer, config))


def pool_bytes(prompts: int, images: int, image_size: int) -> int:
    """The bytes of an evaluation's pool: all pictures, 8 bits a colour and not compressed, with their verdicts."""
    return prompts * images * (3 * image_size**2 + VERDICT_BYTES)
