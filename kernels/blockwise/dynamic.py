"""bitsandbytes' dynamic map of a block to 8 bits (Dettmers et al. 2022, section 2.2): the nearest of 256 values.

    q = the place of the value nearest to x / max|x|,      and read as x' = values[q] * scale,  scale = max|x|

The values are 0, 1 and, with both signs, the middles of intervals. The range from 1e-7 to 1 has seven decades, and each
decade is cut into twice as many equal intervals as the decade below it. So zero is exact. Small entries keep their sign
and size, where the min-max map is off by up to half a quantum; the largest entries are coarser than under the min-max
map. A block that holds a NaN or an infinity comes back with NaN, so that an error is not hidden.

Shapes: E entries in each block, and any dimensions before them.
"""

from functools import cache

import torch
from torch import Tensor

DECADES = 7


@cache
def values(device: torch.device) -> Tensor:
    """The 256 values that codes stand for in a block whose largest entry is 1, ascending; float32."""
    middles = []
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        middles += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - DECADES + 1)).tolist()
    return torch.tensor(sorted([-middle for middle in middles] + [0.0, 1.0] + middles)).to(device)


@cache
def thresholds(device: torch.device) -> Tensor:
    """The 255 middles between neighbouring values. A number's code is the count of thresholds that lie below it."""
    ascending = values(torch.device("cpu"))
    return ((ascending[:-1] + ascending[1:]) / 2).to(device)


@cache
def _bins(device: torch.device) -> tuple[Tensor, Tensor]:
    """A table over the upper 16 bits of a float32, which tells a number's code with one comparison.

    Each of the 2^16 rows has the code of the least number with these upper bits, and the threshold above which the code
    is one more. One threshold is enough: thresholds are at least 1.4 % apart, and the numbers that share their upper
    bits differ by at most 0.8 %.
    """
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack([upper, upper | 0xFFFF]).view(torch.float32)
    borders = torch.cat([thresholds(torch.device("cpu")), torch.tensor([torch.inf])])
    codes = torch.bucketize(ends.nan_to_num().amin(0), borders[:-1], out_int32=True)
    return codes.to(device), borders[codes].to(device)


def bounds(blocks_E: Tensor) -> Tensor:
    """(1, ...): the largest magnitude of each block. The bound of a block is the greatest bound of its parts."""
    # This is the maximum of `blocks.abs()` without a copy of the blocks.
    return torch.maximum(blocks_E.amin(-1).neg_(), blocks_E.amax(-1))[None]


def encode(blocks_E: Tensor, bounds_1: Tensor) -> Tensor:
    """The codes (uint8) of blocks whose `bounds` are given."""
    # A block of zeros would divide 0 by 0.
    divisor = torch.where(bounds_1[0] == 0, 1.0, bounds_1[0])
    shares = blocks_E / divisor[..., None]
    # On the CPU the table takes a fifth of the time of torch.bucketize.
    codes, borders = _bins(blocks_E.device)
    # The shift of an int32 copies the sign into the upper bits; the mask makes it an index.
    halves = ((shares.view(torch.int32) >> 16) & 0xFFFF).flatten()
    larger = shares.flatten() > borders.index_select(0, halves)
    return (codes.index_select(0, halves) + larger).to(torch.int16).to(torch.uint8).view(shares.shape)


def scales(bounds_1: Tensor) -> tuple[Tensor]:
    """The numbers that are stored beside the codes to read them: the largest magnitude of each block."""
    return (bounds_1[0],)


def decode(codes_E: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that codes stand for."""
    chosen = values(codes_E.device).index_select(0, codes_E.int().flatten())
    return chosen.view(codes_E.shape).mul_(scale[..., None])
