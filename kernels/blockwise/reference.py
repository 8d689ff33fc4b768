"""Blockwise 8-bit min-max quantisation in plain PyTorch (SANA-1.5 section 2.3).

A tensor is flattened and cut into blocks of 2048 elements; the last block may be shorter. Each block is stored as

    q = round((x - min) / (max - min) * 255),      and read as x' = q * scale + min,  scale = (max - min) / 255

so an entry is off by half of `scale` at most, and a block of one repeated value (all zeros, say) is exact. Rounding is
to nearest, halves to even. A block that holds a NaN or an infinity comes back as NaN: nothing is masked.

The published training code splits an unflattened matrix, which makes blocks of 2048 rows rather than elements, and
divides 0 by 0 on a constant block. Here both follow the paper.

Shapes: K tensors of one shape, each flattened to its N entries; they share no block.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2048
LEVELS = 255


class Quantized(NamedTuple):
    """Tensors in 8 bits: `codes` uint8 (K, N); `scale` and `minimum` float32 (K, blocks)."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def quantize(values_KN: Tensor) -> Quantized:
    """K flattened tensors (float32, N > 0) in 8 bits."""
    entries = values_KN.shape[1]
    missing = -entries % BLOCK
    if missing:
        # Filling up with an entry of the block leaves its extremes alone.
        values_KN = torch.cat([values_KN, values_KN[:, -1:].expand(-1, missing)], dim=1)
    blocks = values_KN.unflatten(1, (-1, BLOCK))
    minimum, maximum = blocks.amin(2), blocks.amax(2)
    span = maximum - minimum
    divisor = torch.where(span == 0, 1.0, span)
    codes = (blocks - minimum[..., None]).div_(divisor[..., None]).mul_(LEVELS).round_()
    # torch vectorises float32 to int16 to uint8 on the CPU, but not float32 to uint8.
    codes = codes.to(torch.int16).to(torch.uint8).flatten(1)
    return Quantized(codes[:, :entries].contiguous(), span / LEVELS, minimum)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 tensors (K, N) that `quantized` stands for."""
    codes, scale, minimum = quantized
    entries = codes.shape[1]
    missing = -entries % BLOCK
    if missing:
        codes = F.pad(codes, (0, missing))
    blocks = codes.unflatten(1, (-1, BLOCK)).float().mul_(scale[..., None]).add_(minimum[..., None])
    return blocks.flatten(1)[:, :entries].contiguous()
