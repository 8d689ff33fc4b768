"""Blockwise 8-bit min-max quantisation as Triton kernels: one program for each block of 2048 elements.

Every operation rounds as in `kernels.blockwise.reference` (IEEE division, no fused multiply-add, halves to even), so
that codes, scales and minima are the same bits on either path. Shapes as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blockwise.reference import BLOCK, LEVELS, Quantized

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to the nearest integer, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def encode_linear(x, inside, LEVELS: tl.constexpr):
    """Codes, scale and minimum of one block."""
    # tl.min and tl.max skip NaN, which would hide it.
    bad = tl.max((inside & (x != x)).to(tl.int32), axis=0) > 0
    minimum = tl.where(bad, float("nan"), tl.min(tl.where(inside, x, float("inf")), axis=0))
    maximum = tl.where(bad, float("nan"), tl.max(tl.where(inside, x, float("-inf")), axis=0))
    span = maximum - minimum
    divisor = tl.where(span == 0.0, 1.0, span)
    rounded = tl.div_rn(x - minimum, divisor) * LEVELS + ROUNDER - ROUNDER
    return rounded.to(tl.uint8), tl.div_rn(span, LEVELS * 1.0), minimum


@triton.jit
def encode_dynamic(x, inside, thresholds):
    """Codes and scale of one block; `thresholds` are the 255 ascending ones of the dynamic map."""
    bad = tl.max((inside & (x != x)).to(tl.int32), axis=0) > 0
    scale = tl.where(bad, float("nan"), tl.max(tl.where(inside, tl.abs(x), 0.0), axis=0))
    y = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
    code = tl.zeros(x.shape, tl.int32)
    for power in tl.static_range(8):
        # the code is the number of thresholds below y, found bit by bit
        larger = code + (128 >> power)
        code = tl.where(tl.load(thresholds + larger - 1) < y, larger, code)
    return code.to(tl.uint8), scale


@triton.jit
def quantize_kernel(values, codes, scales, minima, entries, BLOCK: tl.constexpr, LEVELS: tl.constexpr):
    """Quantise block `program_id(0)` of tensor `program_id(1)`."""
    block, tensor = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < entries
    x = tl.load(values + tensor * entries + column, mask=inside, other=0.0)
    code, scale, minimum = encode_linear(x, inside, LEVELS)
    tl.store(codes + tensor * entries + column, code, mask=inside)
    place = tensor * tl.num_programs(0) + block
    tl.store(scales + place, scale)
    tl.store(minima + place, minimum)


@triton.jit
def dequantize_kernel(codes, scales, minima, values, entries, BLOCK: tl.constexpr):
    """Write block `program_id(0)` of tensor `program_id(1)`."""
    block, tensor = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < entries
    code = tl.load(codes + tensor * entries + column, mask=inside, other=0).to(tl.float32)
    place = tensor * tl.num_programs(0) + block
    tl.store(values + tensor * entries + column, code * tl.load(scales + place) + tl.load(minima + place), mask=inside)


def quantize(values_KN: Tensor) -> Quantized:
    """As `reference.quantize`, in one pass."""
    values_KN = values_KN.contiguous()
    tensors, entries = values_KN.shape
    grid = (triton.cdiv(entries, BLOCK), tensors)
    codes = torch.empty_like(values_KN, dtype=torch.uint8)
    minimum = values_KN.new_empty(tensors, grid[0])
    scale = torch.empty_like(minimum)
    arguments = (values_KN, codes, scale, minimum, entries)
    quantize_kernel[grid](*arguments, BLOCK=BLOCK, LEVELS=LEVELS, enable_fp_fusion=False)
    return Quantized(codes, scale, minimum)


def dequantize(quantized: Quantized) -> Tensor:
    """As `reference.dequantize`, in one pass."""
    codes, scale, minimum = (tensor.contiguous() for tensor in quantized)
    values_KN = torch.empty_like(codes, dtype=torch.float32)
    grid = (scale.shape[1], codes.shape[0])
    dequantize_kernel[grid](codes, scale, minimum, values_KN, codes.shape[1], BLOCK=BLOCK, enable_fp_fusion=False)
    return values_KN
