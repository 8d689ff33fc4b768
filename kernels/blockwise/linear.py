"""The paper's min-max map of a block to 8 bits (SANA-1.5 section 2.3):

    q = round((x - min) / (max - min) * 255),      and read as x' = q * scale + min,  scale = (max - min) / 255

So an entry is off by at most half of `scale`, and a block of one repeated value, such as zeros, is exact. (The half of
`scale` holds for normal numbers, not for subnormal ones.) Codes are rounded to the nearest integer, halves to even. A
block that holds a NaN or an infinity, or whose max - min is beyond float32, comes back as NaN, so that an error is not
hidden.

Shapes: E entries in each block, and any dimensions before them.
"""

import torch
from torch import Tensor

LEVELS = 255


def bounds(blocks_E: Tensor) -> Tensor:
    """(2, ...): -min and max of each block. The bounds of a block are the greatest bounds of its parts."""
    # The minimum is negated so that one MAX collective joins both bounds of a block that several processes hold.
    return torch.stack([blocks_E.amin(-1).neg_(), blocks_E.amax(-1)])


def encode(blocks_E: Tensor, bounds_2: Tensor) -> Tensor:
    """The codes (uint8) of blocks whose `bounds` are given."""
    minimum, span = -bounds_2[0], bounds_2[1] + bounds_2[0]
    # A constant block would divide 0 by 0, as the published code does.
    divisor = torch.where(span == 0, 1.0, span)
    codes = (blocks_E - minimum[..., None]).div_(divisor[..., None]).mul_(LEVELS).round_()
    # On the CPU torch vectorises float32 to int16 to uint8, but not float32 to uint8.
    return codes.to(torch.int16).to(torch.uint8)


def scales(bounds_2: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers that are stored beside the codes to read them: the scale and the minimum of each block."""
    return (bounds_2[1] + bounds_2[0]) / LEVELS, -bounds_2[0]


def decode(codes_E: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The float32 values that codes stand for."""
    return codes_E.float().mul_(scale[..., None]).add_(minimum[..., None])
