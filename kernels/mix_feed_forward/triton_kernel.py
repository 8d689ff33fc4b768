"""The inside of the Mix-FFN as Triton kernels, forward and backward; `reference` has the equation and the shapes.

A program walks down a strip of `COLUMNS` columns and at most `ROWS` rows, and holds three rows of activated cells in
registers. So a cell is read and activated 1.7 times, counting the borders of strips, instead of nine times. A program
has `BLOCK` channels of values and the `BLOCK` channels of gates that go with them. All arithmetic is in float32,
whatever the tensors hold.

The backward pass keeps only what went in, and runs in two kernels. The first goes through the gate to the convolution's
output. Each of its programs also makes one partial sum of the gradients of weight and bias; these are added up
afterwards in a fixed order. The second goes from there through the convolution and the first SiLU to x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.ahead_of_time import Build
from kernels.float16_triton import store

TILE = {"BLOCK": 128, "ROWS": 16, "COLUMNS": 4}
# The launches were chosen by reading the machine code. Two channels for each thread spill nothing. The kernel with the
# sums has registers for one channel only; without a limit it takes so many that a multiprocessor holds 12 warps
# instead of 16.
FORWARD_LAUNCH = {"num_warps": 2}
MIXED_GRADIENT_LAUNCH = {"num_warps": 4, "maxnreg": 128}
X_GRADIENT_LAUNCH = {"num_warps": 2}
PARTS = 32
"""Programs that share the strips of a block of channels in the backward pass: as many partial sums of each weight."""
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)
SUMS = tl.constexpr(10)
"""Gradients that are summed for each channel: of nine weights and of the bias."""


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without a division, which would take half of the instructions of a SiLU."""
    root = tl.rsqrt(1.0 + tl.exp2(x * MINUS_LOG2_E))
    return root * root


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """The derivative of SiLU."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def strip_of(index, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The number of the image, the first row and the first column of strip `index`."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    return (index // (across * down)).to(tl.int64), index // across % down * ROWS, index % across * COLUMNS


@triton.jit
def load_row(cells, row, column, grid, channel, inside, COLUMNS: tl.constexpr, SILU: tl.constexpr):
    """The `COLUMNS + 2` cells of a row of an image from `column - 1` on, in float32; zeros outside the grid."""
    height, width, channels = grid
    loaded = ()
    for offset in tl.static_range(COLUMNS + 2):
        place = column + offset - 1  # the first cell is the left neighbour of the strip
        on_grid = (row >= 0) & (row < height) & (place >= 0) & (place < width)
        address = cells + (row * width + place).to(tl.int64) * channels + channel
        x = tl.load(address, mask=inside & on_grid, other=0.0).to(tl.float32)
        loaded += (silu(x) if SILU else x,)
    return loaded


@triton.jit
def load_taps(weight, channel, inside, MIRRORED: tl.constexpr):
    """The nine weights of each channel in float32, row by row; in reverse order if MIRRORED."""
    taps = ()
    for tap in tl.static_range(9):
        source = 8 - tap if MIRRORED else tap  # the gradient of a convolution is convolved with the mirrored kernel
        taps += (tl.load(weight + channel * 9 + source, mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def convolve(window, taps, start, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    """`start` plus the nine products around a cell. The cell is `STEP` columns into a window of three rows."""
    total = start
    for tap in tl.static_range(9):
        total += window[tap // 3 * (COLUMNS + 2) + tap % 3 + STEP] * taps[tap]
    return total


@triton.jit
def add_products(sums, window, gradient, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    """`sums` plus the gradients of the nine weights and of the bias that arise at one cell, as in `convolve`."""
    added = ()
    for tap in tl.static_range(9):
        added += (sums[tap] + gradient * window[tap // 3 * (COLUMNS + 2) + tap % 3 + STEP],)
    added += (sums[9] + gradient,)
    return added


@triton.jit
def load_filters(weight, bias, channel, inside):
    """The nine weights and the bias of channels, in float32."""
    return load_taps(weight, channel, inside, False), tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    out,
    height,
    width,
    inner,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write one strip of `BLOCK` channels of the output."""
    blocks, grid = tl.cdiv(inner, BLOCK), (height, width, 2 * inner)
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    gate, inside = value + inner, value < inner
    image, first, column = strip_of(tl.program_id(0) // blocks, height, width, ROWS, COLUMNS)
    cells = x + image * height * width * 2 * inner
    value_taps, value_bias = load_filters(weight, bias, value, inside)
    gate_taps, gate_bias = load_filters(weight, bias, gate, inside)
    # A window is a tuple of cells, row by row, since Triton cannot index into a tensor that lies in registers.
    values = (tl.zeros([BLOCK], tl.float32),) * (2 * (COLUMNS + 2))
    gates = values
    for below in range(first - 1, min(first + ROWS, height) + 1):
        values += load_row(cells, below, column, grid, value, inside, COLUMNS, True)
        gates += load_row(cells, below, column, grid, gate, inside, COLUMNS, True)
        if below > first:  # the window has three rows, of which the middle one is convolved
            for step in tl.static_range(COLUMNS):
                mixed_value = convolve(values, value_taps, value_bias, step, COLUMNS)
                mixed_gate = convolve(gates, gate_taps, gate_bias, step, COLUMNS)
                token = (image * height + below - 1) * width + column + step
                mask = inside & (column + step < width)
                store(out + token * inner + value, mixed_value * silu(mixed_gate), mask)
        values, gates = values[COLUMNS + 2 :], gates[COLUMNS + 2 :]


@triton.jit
def mixed_gradient_kernel(
    x,
    weight,
    bias,
    out_gradient,
    mixed_gradient,
    partial_sums,
    height,
    width,
    inner,
    strips,
    parts,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the convolution's output's gradient on every `parts`-th strip, and this program's sums for the weights."""
    blocks, grid = tl.cdiv(inner, BLOCK), (height, width, 2 * inner)
    value = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    gate, inside = value + inner, value < inner
    value_taps, value_bias = load_filters(weight, bias, value, inside)
    gate_taps, gate_bias = load_filters(weight, bias, gate, inside)
    value_sums = (tl.zeros([BLOCK], tl.float32),) * SUMS
    gate_sums = (tl.zeros([BLOCK], tl.float32),) * SUMS
    part = tl.program_id(0) // blocks
    for strip in range(part, strips, parts):
        image, first, column = strip_of(strip, height, width, ROWS, COLUMNS)
        cells = x + image * height * width * 2 * inner
        values = (tl.zeros([BLOCK], tl.float32),) * (2 * (COLUMNS + 2))
        gates = values
        for below in range(first - 1, min(first + ROWS, height) + 1):
            values += load_row(cells, below, column, grid, value, inside, COLUMNS, True)
            gates += load_row(cells, below, column, grid, gate, inside, COLUMNS, True)
            if below > first:
                for step in tl.static_range(COLUMNS):
                    mixed_value = convolve(values, value_taps, value_bias, step, COLUMNS)
                    mixed_gate = convolve(gates, gate_taps, gate_bias, step, COLUMNS)
                    token = (image * height + below - 1) * width + column + step
                    mask = inside & (column + step < width)
                    arriving = tl.load(out_gradient + token * inner + value, mask=mask, other=0.0).to(tl.float32)
                    value_gradient = arriving * silu(mixed_gate)
                    gate_gradient = arriving * mixed_value * silu_slope(mixed_gate)
                    tl.store(mixed_gradient + token * 2 * inner + value, value_gradient, mask=mask)
                    tl.store(mixed_gradient + token * 2 * inner + gate, gate_gradient, mask=mask)
                    value_sums = add_products(value_sums, values, value_gradient, step, COLUMNS)
                    gate_sums = add_products(gate_sums, gates, gate_gradient, step, COLUMNS)
            values, gates = values[COLUMNS + 2 :], gates[COLUMNS + 2 :]
    for index in tl.static_range(SUMS):
        place = partial_sums + (part * SUMS + index).to(tl.int64) * 2 * inner
        tl.store(place + value, value_sums[index], mask=inside)
        tl.store(place + gate, gate_sums[index], mask=inside)


@triton.jit
def x_gradient_kernel(
    x,
    weight,
    mixed_gradient,
    x_gradient,
    height,
    width,
    channels,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write one strip of `BLOCK` channels of the gradient of x: the mirrored convolution times the slope of SiLU."""
    blocks, grid = tl.cdiv(channels, BLOCK), (height, width, channels)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    image, first, column = strip_of(tl.program_id(0) // blocks, height, width, ROWS, COLUMNS)
    cells = mixed_gradient + image * height * width * channels
    taps = load_taps(weight, channel, inside, True)
    window = (tl.zeros([BLOCK], tl.float32),) * (2 * (COLUMNS + 2))
    for below in range(first - 1, min(first + ROWS, height) + 1):
        window += load_row(cells, below, column, grid, channel, inside, COLUMNS, False)
        if below > first:
            for step in tl.static_range(COLUMNS):
                place = ((image * height + below - 1) * width + column + step) * channels + channel
                mask = inside & (column + step < width)
                slope = silu_slope(tl.load(x + place, mask=mask, other=0.0).to(tl.float32))
                tl.store(x_gradient + place, convolve(window, taps, 0.0, step, COLUMNS) * slope, mask=mask)
        window = window[COLUMNS + 2 :]


def strips_of(images: int, size: tuple[int, int]) -> int:
    """How many strips a batch of grids (H, W) has."""
    return images * triton.cdiv(size[0], TILE["ROWS"]) * triton.cdiv(size[1], TILE["COLUMNS"])


def blocks_of(channels: int) -> int:
    """How many blocks of `BLOCK` channels there are."""
    return triton.cdiv(channels, TILE["BLOCK"])


def forward(x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, I), in their dtype, from tokens (B, N, 2I), weights (2I, 1, 3, 3) and bias (2I), which are contiguous."""
    images, tokens, channels = x_BNC.shape
    out_BNI = x_BNC.new_empty(images, tokens, channels // 2)
    grid = (strips_of(images, size) * blocks_of(channels // 2),)
    tensors = (x_BNC, weight, bias, out_BNI)
    forward_kernel[grid](*tensors, *size, channels // 2, **TILE, **FORWARD_LAUNCH)
    return out_BNI


def backward(
    x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int], out_gradient_BNI: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its dtype), weight and bias (both in float32), from the output's gradient, contiguous too."""
    images, _, channels = x_BNC.shape
    strips = strips_of(images, size)
    parts = min(strips, PARTS)
    # In float16, a gradient would overflow here although the convolution brings it back into float16's range.
    between = torch.float32 if x_BNC.dtype == torch.float16 else x_BNC.dtype
    mixed_gradient_BNC = torch.empty_like(x_BNC, dtype=between)
    sums_PSC = x_BNC.new_empty(parts, SUMS.value, channels, dtype=torch.float32)
    mixed_gradient_kernel[(parts * blocks_of(channels // 2),)](
        *(x_BNC, weight, bias, out_gradient_BNI, mixed_gradient_BNC, sums_PSC),
        *(*size, channels // 2, strips, parts),
        **TILE,
        **MIXED_GRADIENT_LAUNCH,
    )
    x_gradient_BNC = torch.empty_like(x_BNC)
    x_gradient_kernel[(strips * blocks_of(channels),)](
        *(x_BNC, weight, mixed_gradient_BNC, x_gradient_BNC), *size, channels, **TILE, **X_GRADIENT_LAUNCH
    )
    sums_SC = sums_PSC.sum(0)
    return x_gradient_BNC, sums_SC[:9].T.reshape(weight.shape), sums_SC[9]


class MixFeedForwardFunction(torch.autograd.Function):
    """The forward kernel with its backward ones. Asking for a second derivative is an error."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
        """What the function `forward` returns, for tensors of any strides."""
        x_BNC, weight, bias = x_BNC.contiguous(), weight.contiguous(), bias.contiguous()
        ctx.save_for_backward(x_BNC, weight, bias)
        ctx.size = size
        return forward(x_BNC, weight, bias, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, out_gradient_BNI: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """What the function `backward` returns, in the dtypes of x, weight and bias."""
        x_BNC, weight, bias = ctx.saved_tensors
        gradients = backward(x_BNC, weight, bias, ctx.size, out_gradient_BNI.contiguous())
        x_gradient_BNC, weight_gradient, bias_gradient = gradients
        return x_gradient_BNC, weight_gradient.to(weight.dtype), bias_gradient.to(bias.dtype), None


def mix_feed_forward(x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute what `reference.mix_feed_forward` states, in float32 inside, for float32, bfloat16 or float16 tokens."""
    return MixFeedForwardFunction.apply(x_BNC, weight, bias, size)


def ahead_of_time() -> list[Build]:
    """The kernels at any grid with the 1.6B's 5600 inner channels, for bfloat16 or float32 tokens, float32 weights."""
    builds = []
    for kernel, launch in (
        (forward_kernel, FORWARD_LAUNCH),
        (mixed_gradient_kernel, MIXED_GRADIENT_LAUNCH),
        (x_gradient_kernel, X_GRADIENT_LAUNCH),
    ):
        for dtype in ("bf16", "fp32"):
            tokens = dict.fromkeys(("x", "out", "out_gradient", "mixed_gradient", "x_gradient"), f"*{dtype}")
            pointers = tokens | dict.fromkeys(("weight", "bias", "partial_sums"), "*fp32")
            names = [name for name in kernel.arg_names if name not in TILE]
            types = {name: pointers.get(name, "i32") for name in names}
            divisible = frozenset(name for name in names if name in pointers or name in ("inner", "channels"))
            builds.append(Build(kernel, types, TILE, divisible, launch))
    return builds
