"""Bytes on disk: shards, cached encodings, checkpoints, state to resume from, pools of pictures.

Left out are the headers of safetensors, JSON beside them, and logs: kilobytes each.
"""

from math import ceil, prod

from model.network import NetworkConfig
from tasks.data.shards import describe
from tasks.planning.training_memory import optimizer_bytes
from tasks.training.training_state import KEPT

TAR_BLOCK = 512  # a member is a header of one block and its bytes in whole blocks
TAR_END = 2 * TAR_BLOCK
TAR_RECORD = 20 * TAR_BLOCK  # a tar ends on a whole one
NPY_HEADER = 128
HALF = 2  # bytes of float16
VERDICTS = 1 + 8 + 8  # correct, and the judge's score for the own and for another prompt


def member_bytes(size: float) -> int:
    """A tar member of `size` bytes."""
    return TAR_BLOCK * (1 + ceil(size / TAR_BLOCK))


def npy_bytes(*shape: int) -> int:
    """A float16 array as `.npy`."""
    return NPY_HEADER + HALF * prod(shape)


def encoded_sample_bytes(
    image_size: int, latent: tuple[int, int, int], caption: str, text_tokens: int, channels: int
) -> int:
    """A sample of stage `encode`: latent (C, H, W), text without padding, and record."""
    arrays = member_bytes(npy_bytes(*latent)) + member_bytes(npy_bytes(text_tokens, channels))
    return arrays + record_bytes(image_size, caption)


def record_bytes(image_size: int, caption: str) -> int:
    """A sample's record, as a member: the size of its picture and its caption."""
    return member_bytes(len(describe(image_size, image_size, caption)))


def shards_bytes(samples: int, sample_bytes: float, samples_per_shard: int) -> int:
    """Shards of samples of a mean size."""
    whole, rest = divmod(samples, samples_per_shard)
    return whole * _tar(samples_per_shard * sample_bytes) + (_tar(rest * sample_bytes) if rest else 0)


def _tar(members: float) -> int:
    return TAR_RECORD * ceil((members + TAR_END) / TAR_RECORD)


def state_bytes(optimizer: str, config: NetworkConfig, weights: int) -> int:
    """State to resume training from, of every generation and the one being written.

    `weights` are the bytes of the weights and their average; to them comes the optimizer's state.
    """
    return (KEPT + 1) * (weights + optimizer_bytes(optimizer, config))


def pool_bytes(prompts: int, images: int, image_size: int) -> int:
    """An evaluation's pool: all pictures, 8 bits a colour and not compressed, with their verdicts."""
    return prompts * images * (3 * image_size**2 + VERDICTS)
