"""bfloat16 parameters with 8 bits more: together they are a float32 rounded to 16 significant bits.

A bfloat16 is the upper half of a float32. The correction holds the 8 bits behind it as a signed number, in 256ths of
the gap between two bfloat16. So the parameter in use is the nearest bfloat16, updates far below its gap are not lost,
and no random bits are needed. A parameter takes 3 bytes. The parameter alone is all that the network reads.
"""

import torch
from torch import Tensor

# So many entries are updated at once: few enough to stay in a core's cache.
PIECE = 2**16

NAN = 0x7FC00000
"""The bits of a float32 NaN whose lower half is zero: a bfloat16 NaN and a correction of 0."""


def joined(parameter_N: Tensor, correction_N: Tensor) -> Tensor:
    """The float32 that a bfloat16 parameter and its int8 correction stand for."""
    upper = parameter_N.view(torch.int16).int() * 256 + correction_N.int()
    return (upper * 256).view(torch.float32)


def split(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 parameter and the int8 correction of a float32, rounded to 16 significant bits.

    What is left is at most 2^-16 of the value, for a value that is not below float32's normal numbers. NaN stays NaN.
    """
    # A carry out of the NaN that NVIDIA's GPUs compute (0x7FFFFFFF) would make it -0, so every NaN gets one pattern.
    bits_N = values_N.contiguous().view(torch.int32).masked_fill(values_N.isnan(), NAN)
    # Bits are added to magnitudes, since the sign is a bit of its own. A carry goes into the exponent, as it should.
    bits_N = (bits_N + 0x80) >> 8
    upper_N = (bits_N + 0x80) >> 8
    return upper_N.to(torch.int16).view(torch.bfloat16), (bits_N - upper_N * 256).to(torch.int8)


def descend(values_N: Tensor, correction_N: Tensor, movement_N: Tensor, lr: float, weight_decay: float) -> None:
    """p <- p - lr * (weight_decay * p + movement), in place: `values_N` bfloat16 with their int8 corrections."""
    for start in range(0, len(values_N), PIECE):
        here = slice(start, start + PIECE)
        values = joined(values_N[here], correction_N[here])
        values.sub_(values, alpha=lr * weight_decay).sub_(movement_N[here], alpha=lr)
        moved, rest = split(values)
        values_N[here], correction_N[here] = moved, rest
