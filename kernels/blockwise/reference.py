"""Blockwise 8-bit quantisation in plain PyTorch (SANA-1.5 section 2.3).

A tensor is flattened and cut into blocks of 2048 elements; the last block may be shorter. Each block is mapped to
8 bits by itself. The map `linear` is the paper's min-max map, and `dynamic` is the map of bitsandbytes.

The published training code differs from the paper in two places, and this code follows the paper in both. It splits an
unflattened matrix, which makes blocks of 2048 rows rather than elements. It divides 0 by 0 on a constant block.

Shapes: K tensors of one shape, each flattened to its N entries; they share no block. E = 2048 entries in a block, B
blocks of a tensor, P numbers that bound a block (2 under `linear`, 1 under `dynamic`).
"""

from types import ModuleType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.blockwise import dynamic, linear
from kernels.blockwise.linear import LEVELS

__all__ = ["BLOCK", "LEVELS", "MAPS", "Map", "Quantized", "blocks_of", "dequantize", "encode", "quantize"]

BLOCK = 2048
# So many blocks are encoded at once: their temporaries fit a core's cache, and no copy of a large tensor is made.
PIECE = 128

Map = Literal["linear", "dynamic"]
MAPS: dict[Map, ModuleType] = {"linear": linear, "dynamic": dynamic}


class Quantized(NamedTuple):
    """Tensors in 8 bits: `codes` uint8 (K, N), `scale` and `minimum` float32 (K, B). `dynamic` has no minimum."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None


def quantize(values_KN: Tensor, map: Map = "linear") -> Quantized:
    """K flattened tensors (float32, N > 0) in 8 bits."""
    blocks_KBE = blocks_of(values_KN)
    bounds = MAPS[map].bounds(blocks_KBE)
    codes = encode(blocks_KBE, bounds, map).flatten(1)
    # `contiguous` lets go of the codes of the filling.
    return Quantized(codes[:, : values_KN.shape[1]].contiguous(), *MAPS[map].scales(bounds))


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 tensors (K, N) that `quantized` stands for."""
    codes, scale, minimum = quantized
    entries = codes.shape[1]
    missing = -entries % BLOCK
    blocks_KBE = (F.pad(codes, (0, missing)) if missing else codes).unflatten(1, (-1, BLOCK))
    values = dynamic.decode(blocks_KBE, scale) if minimum is None else linear.decode(blocks_KBE, scale, minimum)
    return values.flatten(1)[:, :entries].contiguous()


def encode(blocks_KBE: Tensor, bounds_PKB: Tensor, map: Map) -> Tensor:
    """The codes (uint8) of blocks whose `bounds` are given."""
    pieces = zip(blocks_KBE.split(PIECE, dim=1), bounds_PKB.split(PIECE, dim=2), strict=True)
    return torch.cat([MAPS[map].encode(blocks, bounds) for blocks, bounds in pieces], dim=1)


def blocks_of(values_KN: Tensor, before: int = 0) -> Tensor:
    """(K, B, E): the blocks of K flattened tensors.

    The tensors may be parts of larger ones: `before` says how many entries of its first block, fewer than a block has,
    a part does not hold.
    """
    after = -(before + values_KN.shape[1]) % BLOCK
    if before or after:
        # A block is filled up with one of its own entries, which leaves its extremes alone.
        first, last = values_KN[:, :1].expand(-1, before), values_KN[:, -1:].expand(-1, after)
        values_KN = torch.cat([first, values_KN, last], dim=1)
    return values_KN.unflatten(1, (-1, BLOCK))
