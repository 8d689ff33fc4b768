"""The paper's min-max map of a block to 8 bits (SANA-1.5 section 2.3):

    q = round((x - min) / (max - min) * 255),      and read as x' = q * scale + min,  scale = (max - min) / 255

so an entry is off by half of `scale` at most, and a block of one repeated value (all zeros, say) is exact. Rounding is
to nearest, halves to even. A block that holds a NaN or an infinity, or whose max - min is beyond float32, comes back
as NaN: nothing is masked. (Half of `scale` holds for normal numbers, not for subnormal ones.)

Shapes: E entries in each block, and any dimensions before them.
"""

import torch
from torch import Tensor

LEVELS = 255


def bounds(blocks_E: Tensor) -> Tensor:
    """(2, ...): -min and max of each block. A block's bounds are the greatest of its parts' bounds."""
    return torch.stack([blocks_E.amin(-1).neg_(), blocks_E.amax(-1)])


def encode(blocks_E: Tensor, bounds_2: Tensor) -> Tensor:
    """The codes (uint8) of blocks, given their bounds."""
    minimum, span = -bounds_2[0], bounds_2[1] + bounds_2[0]
    divisor = torch.where(span == 0, 1.0, span)
    codes = (blocks_E - minimum[..., None]).div_(divisor[..., None]).mul_(LEVELS).round_()
    # torch vectorises float32 to int16 to uint8 on the CPU, but not float32 to uint8.
    return codes.to(torch.int16).to(torch.uint8)


def scales(bounds_2: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept to read codes: the scale and the minimum of each block."""
    return (bounds_2[1] + bounds_2[0]) / LEVELS, -bounds_2[0]


def decode(codes_E: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The float32 values that codes stand for."""
    return codes_E.float().mul_(scale[..., None]).add_(minimum[..., None])
