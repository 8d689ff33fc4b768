"""Blockwise 8-bit quantisation inside a Triton kernel: of one block of 2048 elements that it holds, by either map.

Every operation rounds as in `kernels.blockwise.reference` (IEEE division, halves to even), so that scales and minima
have the same bits. Codes have the same bits too, unless the compiler fuses a multiplication with an addition: then a
number that lies within a rounding of half-way between two codes may get the other one.
"""

import triton
import triton.language as tl

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to the nearest integer, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def bounds_linear(x, inside):
    """The minimum and the maximum of one block; both are NaN if it holds a NaN."""
    # tl.min and tl.max skip NaN, which would hide an error.
    bad = tl.max((inside & (x != x)).to(tl.int32)) > 0
    minimum = tl.where(bad, float("nan"), tl.min(tl.where(inside, x, float("inf"))))
    maximum = tl.where(bad, float("nan"), tl.max(tl.where(inside, x, float("-inf"))))
    return minimum, maximum


@triton.jit
def codes_linear(x, minimum, maximum, LEVELS: tl.constexpr):
    """Codes and scale of entries of a block with these bounds."""
    span = maximum - minimum
    divisor = tl.where(span == 0.0, 1.0, span)
    rounded = tl.div_rn(x - minimum, divisor) * LEVELS + ROUNDER - ROUNDER
    return rounded.to(tl.uint8), tl.div_rn(span, LEVELS * 1.0)


@triton.jit
def encode_linear(x, inside, LEVELS: tl.constexpr):
    """Codes, scale and minimum of one block."""
    minimum, maximum = bounds_linear(x, inside)
    codes, scale = codes_linear(x, minimum, maximum, LEVELS)
    return codes, scale, minimum


@triton.jit
def bound_dynamic(x, inside):
    """The largest magnitude of one block, which is its scale; NaN if it holds a NaN."""
    bad = tl.max((inside & (x != x)).to(tl.int32)) > 0
    return tl.where(bad, float("nan"), tl.max(tl.where(inside, tl.abs(x), 0.0)))


@triton.jit
def codes_dynamic(x, scale, thresholds):
    """Codes of entries of a block with this scale; `thresholds` points to the 255 ascending thresholds of the map."""
    y = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
    code = tl.zeros(x.shape, tl.int32)
    for power in tl.static_range(8):
        # The code is the number of thresholds below y. A binary search finds it, one bit at a time.
        larger = code + (128 >> power)
        code = tl.where(tl.load(thresholds + larger - 1) < y, larger, code)
    return code.to(tl.uint8)


@triton.jit
def encode_dynamic(x, inside, thresholds):
    """Codes and scale of one block; `thresholds` points to the 255 ascending thresholds of the dynamic map."""
    scale = bound_dynamic(x, inside)
    return codes_dynamic(x, scale, thresholds), scale
