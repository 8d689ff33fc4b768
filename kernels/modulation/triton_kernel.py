"""AdaLN modulation and the gated residual as Triton kernels, forward and backward; `reference` has the equations.

With g the gradient of the output, n = LN(x) = (x - mean) * r, and means over the channels, the gradients are:

    modulate:          e = g * (1 + scale),    dx = r * (e - mean(e) - n * mean(e * n)),
                       dscale = sum over tokens of g * n,    dshift = sum over tokens of g
    gated residual:    dx = g,    dy = g * gate,    dgate = sum over tokens of g * y

Under autocast x, shift, scale and gate are float32, and `modulate`'s result and y are bfloat16. The kernels read and
write each tensor in its own dtype, so neither a widened nor a narrowed copy of any of them is made.

A program holds all channels of a token. A sum over tokens is made of partial sums over runs of tokens, which a second
pass adds up: there are no atomics, so the bits are the same every time. All arithmetic is in float32 and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.ahead_of_time import Build
from kernels.float16_triton import store
from kernels.modulation.reference import LAYER_NORM_EPS

PROGRAMS = 512  # programs that share the tokens of a sum, where there are enough tokens
LEAST_ROWS = 8  # tokens that each of these programs has at least
# The launches were chosen by reading the machine code: for programs that hold a token, and for programs that also keep
# sums over tokens.
LAUNCH = {"num_warps": 8}
SUM_LAUNCH = {"num_warps": 16, "maxnreg": 64}
# With x in float32 and a gradient in bfloat16, sixteen warps hold the two in different layouts, trade them through
# shared memory and spill. With four channels a thread both have one layout, and as many warps fit a multiprocessor.
MIXED_SUM_LAUNCH = {"num_warps": 32, "maxnreg": 64}


@triton.jit
def load(pointer, offset, inside):
    """Load the channels of one token in float32."""
    return tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def modulate_kernel(x, shift, scale, out, means, inverse_deviations, width, stride, eps, BLOCK: tl.constexpr):
    """Modulate token `program_id(0)` of picture `program_id(1)`; `stride` is from a picture's shift to the next's."""
    picture = tl.program_id(1).to(tl.int64)
    row = picture * tl.num_programs(0) + tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    values = load(x, row * width + channel, inside)
    mean = tl.sum(values) / width
    # Channels beyond the width would bring -mean into the deviation.
    centred = tl.where(inside, values - mean, 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    tl.store(means + row, mean)
    tl.store(inverse_deviations + row, inverse_deviation)
    time = picture * stride + channel
    modulated = centred * inverse_deviation * (1.0 + load(scale, time, inside)) + load(shift, time, inside)
    store(out + row * width + channel, modulated, inside)


@triton.jit
def modulate_gradient_kernel(
    x, scale, means, inverse_deviations, gradient, dx, dtime, tokens, share, width, stride, BLOCK: tl.constexpr
):
    """Write dx for run `program_id(0)` of `share` tokens of picture `program_id(1)`.

    The run's part of dshift and dscale goes into `dtime` (2, B, runs, D).
    """
    run, picture, pictures = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    factor = 1.0 + load(scale, picture * stride + channel, inside)
    dshift = tl.zeros((BLOCK,), tl.float32)
    dscale = tl.zeros((BLOCK,), tl.float32)
    for token in range(run * share, min((run + 1) * share, tokens)):
        row = picture * tokens + token
        inverse_deviation = tl.load(inverse_deviations + row)
        normed = (load(x, row * width + channel, inside) - tl.load(means + row)) * inverse_deviation
        g = load(gradient, row * width + channel, inside)  # 0 beyond the width, where `normed` is not
        dshift += g
        dscale += g * normed
        dnormed = g * factor
        # LN does not see the mean and the scale of x. These terms take the gradient's parts along them out.
        along = tl.sum(dnormed * normed) / width
        values = inverse_deviation * (dnormed - tl.sum(dnormed) / width - normed * along)
        tl.store(dx + row * width + channel, values.to(dx.dtype.element_ty), mask=inside)
    place = (picture * tl.num_programs(0) + run) * width + channel
    tl.store(dtime + place, dshift, mask=inside)
    tl.store(dtime + place + pictures * tl.num_programs(0) * width, dscale, mask=inside)


@triton.jit
def gated_residual_kernel(x, gate, y, out, width, stride, BLOCK: tl.constexpr):
    """Add token `program_id(0)` of picture `program_id(1)`; `stride` leads from one picture's gate to the next's."""
    picture = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    place = (picture * tl.num_programs(0) + tl.program_id(0)) * width + channel
    total = load(x, place, inside) + load(gate, picture * stride + channel, inside) * load(y, place, inside)
    store(out + place, total, inside)


@triton.jit
def gated_residual_gradient_kernel(gate, y, gradient, dy, dgate, tokens, share, width, stride, BLOCK: tl.constexpr):
    """Write dy and a part of dgate (B, runs, D) for run `program_id(0)` of `share` tokens, picture `program_id(1)`."""
    run, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    factor = load(gate, picture * stride + channel, inside)
    total = tl.zeros((BLOCK,), tl.float32)
    for token in range(run * share, min((run + 1) * share, tokens)):
        place = (picture * tokens + token) * width + channel
        g = load(gradient, place, inside)
        total += g * load(y, place, inside)
        tl.store(dy + place, (g * factor).to(dy.dtype.element_ty), mask=inside)
    tl.store(dgate + (picture * tl.num_programs(0) + run) * width + channel, total, mask=inside)


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Compute what `reference.modulate` states. It can be differentiated once."""
    return ModulateFunction.apply(x_BND, shift_B1D, scale_B1D, out_dtype)


def gated_residual(x_BND: Tensor, gate_B1D: Tensor, y_BND: Tensor) -> Tensor:
    """Compute what `reference.gated_residual` states. It can be differentiated once."""
    return GatedResidualFunction.apply(x_BND, gate_B1D, y_BND)


class ModulateFunction(torch.autograd.Function):
    """The kernel of `modulate` with its backward one. It keeps x, scale, and each token's mean and deviation.

    A float32 x is kept in float32: 4 N D bytes for a picture, where a bfloat16 one takes 2 N D. A block modulates
    twice, so a float32 stream costs 4 N D bytes more for each block: .14 GB for a picture of 512 pixels (256 tokens) in
    the 4.8B (60 blocks of 2240 channels). A bfloat16 copy would save that, but the gradient would be of a rounded x.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, out_dtype: torch.dtype
    ) -> Tensor:
        """LN(x) * (1 + scale) + shift in `out_dtype`, for tensors of any strides."""
        x_BND = x_BND.contiguous()
        shift_B1D, scale_B1D = _alike(shift_B1D, scale_B1D)
        batch, tokens, width = x_BND.shape
        means = x_BND.new_empty(batch, tokens, dtype=torch.float32)
        inverse_deviations = torch.empty_like(means)
        out_BND = torch.empty_like(x_BND, dtype=out_dtype)
        outputs = (out_BND, means, inverse_deviations)
        arguments = (x_BND, shift_B1D, scale_B1D, *outputs, width, scale_B1D.stride(0), LAYER_NORM_EPS)
        modulate_kernel[(tokens, batch)](*arguments, BLOCK=triton.next_power_of_2(width), **LAUNCH)
        ctx.save_for_backward(x_BND, scale_B1D, means, inverse_deviations)
        return out_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_BND: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of x, shift and scale, in their dtype."""
        x_BND, scale_B1D, means, inverse_deviations = ctx.saved_tensors
        batch, tokens, width = x_BND.shape
        share, runs = _runs(batch, tokens)
        dx_BND = torch.empty_like(x_BND)
        dtime = means.new_empty(2, batch, runs, width)
        inputs = (x_BND, scale_B1D, means, inverse_deviations, gradient_BND.contiguous())
        arguments = (*inputs, dx_BND, dtime, tokens, share, width, scale_B1D.stride(0))
        launch = SUM_LAUNCH if gradient_BND.dtype == x_BND.dtype else MIXED_SUM_LAUNCH
        modulate_gradient_kernel[(runs, batch)](*arguments, BLOCK=triton.next_power_of_2(width), **launch)
        dshift_B1D, dscale_B1D = dtime.sum(2, keepdim=True).to(scale_B1D.dtype)
        return dx_BND, dshift_B1D, dscale_B1D, None


class GatedResidualFunction(torch.autograd.Function):
    """The kernel of `gated_residual` with its backward one. It keeps gate and y."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BND: Tensor, gate_B1D: Tensor, y_BND: Tensor) -> Tensor:
        """x + gate * y in the dtype of x, for tensors of any strides."""
        x_BND, y_BND = x_BND.contiguous(), y_BND.contiguous()
        (gate_B1D,) = _alike(gate_B1D)
        batch, tokens, width = x_BND.shape
        out_BND = torch.empty_like(x_BND)
        arguments = (x_BND, gate_B1D, y_BND, out_BND, width, gate_B1D.stride(0))
        gated_residual_kernel[(tokens, batch)](*arguments, BLOCK=triton.next_power_of_2(width), **LAUNCH)
        ctx.save_for_backward(gate_B1D, y_BND)
        return out_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, gate and y, each in its dtype."""
        gate_B1D, y_BND = ctx.saved_tensors
        batch, tokens, width = y_BND.shape
        share, runs = _runs(batch, tokens)
        dy_BND = torch.empty_like(y_BND)
        dgate = y_BND.new_empty(batch, runs, width, dtype=torch.float32)
        inputs = (gate_B1D, y_BND, gradient_BND.contiguous())
        arguments = (*inputs, dy_BND, dgate, tokens, share, width, gate_B1D.stride(0))
        gated_residual_gradient_kernel[(runs, batch)](*arguments, BLOCK=triton.next_power_of_2(width), **SUM_LAUNCH)
        return gradient_BND, dgate.sum(1, keepdim=True).to(gate_B1D.dtype), dy_BND


def _alike(*tensors_B1D: Tensor) -> tuple[Tensor, ...]:
    """Rows that lie one stride apart from picture to picture, the same for all of these tensors.

    The chunks of one tensor that a block hands over are such rows already; other tensors are copied.
    """
    strides = {(tensor.stride(0), tensor.stride(2)) for tensor in tensors_B1D}
    if len(strides) == 1 and strides.pop()[1] == 1:
        return tensors_B1D
    return tuple(tensor.contiguous() for tensor in tensors_B1D)


def _runs(batch: int, tokens: int) -> tuple[int, int]:
    """How many tokens one program sums over, and how many such runs a picture has."""
    share = max(LEAST_ROWS, triton.cdiv(batch * tokens, PROGRAMS))
    return share, triton.cdiv(tokens, share)


def ahead_of_time() -> list[Build]:
    """The kernels at the 1.6B's 2240 channels and any number of tokens, for tensors of one dtype and under autocast."""
    statistics = dict.fromkeys(("means", "inverse_deviations", "dtime", "dgate"), "*fp32")
    stream = ("x", "shift", "scale", "gate", "dx")
    builds = []
    for kernel, launch in (
        (modulate_kernel, LAUNCH),
        (modulate_gradient_kernel, SUM_LAUNCH),
        (gated_residual_kernel, LAUNCH),
        (gated_residual_gradient_kernel, SUM_LAUNCH),
    ):
        # The gated residual's result and its gradient belong to the stream, those of modulation to the branch.
        ends = ("out", "gradient")
        in_stream, in_branch = (ends, ("y", "dy")) if "gate" in kernel.arg_names else ((), ends)
        for wide, dtype in (("bf16", "bf16"), ("fp32", "fp32"), ("fp16", "fp16"), ("fp32", "bf16")):
            pointers = dict.fromkeys((*stream, *in_stream), f"*{wide}") | dict.fromkeys(in_branch, f"*{dtype}")
            pointers |= statistics
            others = {"eps": "fp32"}
            types = {name: (pointers | others).get(name, "i32") for name in kernel.arg_names if name != "BLOCK"}
            divisible = frozenset(name for name in types if name in pointers or name in ("width", "stride"))
            mixed = wide != dtype and kernel is modulate_gradient_kernel
            options = MIXED_SUM_LAUNCH if mixed else launch
            builds.append(Build(kernel, types, {"BLOCK": 4096}, divisible, options))
    return builds
