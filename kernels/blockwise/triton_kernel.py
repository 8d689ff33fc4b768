"""Blockwise 8-bit quantisation of what a Triton kernel holds: one block of 2048 elements, for both maps.

Every operation rounds as in `kernels.blockwise.reference` (IEEE division, halves to even), so scales and minima are the
same bits. So are codes, unless the compiler fuses a multiplication with an addition: then a number within a rounding of
half-way may get the next one.
"""

import triton
import triton.language as tl

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to the nearest integer, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def encode_linear(x, inside, LEVELS: tl.constexpr):
    """Codes, scale and minimum of one block."""
    # tl.min and tl.max skip NaN, which would hide it.
    bad = tl.max((inside & (x != x)).to(tl.int32)) > 0
    minimum = tl.where(bad, float("nan"), tl.min(tl.where(inside, x, float("inf"))))
    maximum = tl.where(bad, float("nan"), tl.max(tl.where(inside, x, float("-inf"))))
    span = maximum - minimum
    divisor = tl.where(span == 0.0, 1.0, span)
    rounded = tl.div_rn(x - minimum, divisor) * LEVELS + ROUNDER - ROUNDER
    return rounded.to(tl.uint8), tl.div_rn(span, LEVELS * 1.0), minimum


@triton.jit
def encode_dynamic(x, inside, thresholds):
    """Codes and scale of one block; `thresholds` are the 255 ascending ones of the dynamic map."""
    bad = tl.max((inside & (x != x)).to(tl.int32)) > 0
    scale = tl.where(bad, float("nan"), tl.max(tl.where(inside, tl.abs(x), 0.0)))
    y = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
    code = tl.zeros(x.shape, tl.int32)
    for power in tl.static_range(8):
        # the code is the number of thresholds below y, found bit by bit
        larger = code + (128 >> power)
        code = tl.where(tl.load(thresholds + larger - 1) < y, larger, code)
    return code.to(tl.uint8), scale
