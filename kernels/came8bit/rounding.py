"""Stochastic rounding to bfloat16, with random bits that are a pure function of seed, step, parameter and entry.

A bfloat16 is the upper half of a float32. Adding 16 random bits to a float32 and cutting its lower half off rounds the
number up with a probability equal to its distance from the lower neighbour, in units of the gap. So the mean of many
draws is the number itself. Steps smaller than half the gap between two bfloat16 survive in the mean, where rounding to
nearest would drop them altogether.

The bits are a hash of 32-bit integers (two rounds of the multiply-and-shift mixer "lowbias32" of C. Wellons). So a run
that is resumed, is sharded, or is on another device draws the same bits.
"""

import hashlib
import struct
from typing import NamedTuple

import torch
from torch import Tensor

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # of lowbias32
# So many entries are rounded at once: few enough to stay in a core's cache.
PIECE = 2**16


class Key(NamedTuple):
    """64 bits, as two signed 32-bit integers, from which the random bits of a parameter at one step follow."""

    first: int
    second: int


def key_of(seed: int, step: int, parameter: int) -> Key:
    """The key for step `step` of the parameter whose index in the optimizer is `parameter`."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, parameter), digest_size=8).digest()
    return Key(*struct.unpack("<ii", digest))


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int32 that spreads every bit over all bits, in place."""
    # The hash is of unsigned integers. torch shifts copies of the sign in, and the masks make them zeros.
    x ^= (x >> 16) & 0xFFFF
    x *= MULTIPLIERS[0]
    x ^= (x >> 15) & 0x1FFFF
    x *= MULTIPLIERS[1] - 2**32  # the same bits as a signed integer
    x ^= (x >> 16) & 0xFFFF
    return x


def random_bits(key: tuple[int | Tensor, int | Tensor], entries_N: Tensor) -> Tensor:
    """16 random bits (int32) for each of these indices (int32) of entries in the flattened parameter.

    If the halves of the key are tensors (K, 1), the bits are those of K parameters (K, N).
    """
    return _mixed(_mixed(entries_N ^ key[0]) ^ key[1]) & 0xFFFF


def to_bfloat16(values_N: Tensor, bits_N: Tensor) -> Tensor:
    """float32 values rounded to bfloat16: up where the lower half plus the random bits overflows. NaN stays NaN."""
    rounded = ((values_N.view(torch.int32) + bits_N) & -0x10000).view(torch.float32)
    # Adding bits to an infinity would make it NaN, and to a NaN could make it an infinity.
    return torch.where(values_N.isfinite(), rounded, values_N).bfloat16()


def descend(
    values_KN: Tensor, movement_KN: Tensor, lr: float, weight_decay: float, keys: list[Key], first: int = 0
) -> None:
    """p <- p - lr * (weight_decay * p + movement), in place, rounded once and stochastically.

    `values_KN` are K bfloat16 parameters with a key for each. If they are parts of larger ones, `first` is the index of
    their first entry in the whole flattened parameter.
    """
    key = keys[0] if len(keys) == 1 else torch.tensor(keys, dtype=torch.int32, device=values_KN.device).T[..., None]
    for start in range(0, values_KN.shape[1], PIECE):
        piece = values_KN[:, start : start + PIECE]
        values = piece.float()
        values.sub_(values, alpha=lr * weight_decay).sub_(movement_KN[:, start : start + PIECE], alpha=lr)
        place = first + start
        entries = torch.arange(place, place + piece.shape[1], dtype=torch.int32, device=piece.device)
        piece.copy_(to_bfloat16(values, random_bits((key[0], key[1]), entries)))
