"""ReLU linear attention with QK norm as Triton kernels, forward and backward; `reference` has equation and shapes.

The forward pass computes the root mean square of each token's queries and keys (over all heads), the sums of each head

    S = sum_j v_j k_j^T   (d x d),      z = sum_j k_j   (d)      as one (d + 1) x d matrix,

and out_i = S q_i / (z . q_i + eps). The backward pass computes, with g the gradient of the output and
den_i = z . q_i + eps,

    dnum_i = g_i / den_i,    dden_i = - dnum_i . out_i = - (S^T dnum_i) . q_i / den_i,
    dq_i = S^T dnum_i + dden_i z,    dS = sum_i dnum_i q_i^T,    dz = sum_i dden_i q_i,
    dk_j = dS^T v_j + dz,    dv_j = dS k_j,

and takes dq and dk through ReLU and then through the norm. It recomputes normed queries and keys rather than keep them.

A sum over tokens is made of partial sums over fixed runs of tokens, which a second pass adds up. There are no atomics,
so the bits are the same every time, and a picture's output does not depend on what else is in the batch. All arithmetic
is in float32. Products of float32 keep its precision on tensor cores, which take three TF32 products for each.

E is 3D: a token's queries, keys and values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.ahead_of_time import Build
from kernels.float16_triton import store
from kernels.kernel_choice import INTERPRETED
from kernels.linear_attention.reference import NORM_EPS, NormWeights

TILE = 64  # tokens that a program holds at a time
SUM_TILE = 32  # tokens that a program which sums over tokens holds at a time: with more it spills registers
RUN = 256  # tokens that a program sums over
NORM_PROGRAMS = 512  # programs that share the tokens in the norm's backward pass, where there are enough tokens
LEAST_ROWS = 8  # tokens that each of these programs has at least
# The launches were chosen by reading the machine code. The first is for programs that hold whole rows, the second for
# programs that also keep sums over rows. The third is for the key-value sums: there Triton's pipelining would copy four
# bytes at a time to shared memory.
ROW_LAUNCH = {"num_warps": 8}
ROW_SUM_LAUNCH = {"num_warps": 16, "maxnreg": 64}
KEY_VALUE_LAUNCH = {"num_stages": 1}


@triton.jit
def inverse_rms_kernel(qkv, inverse_rms, width, eps, BLOCK: tl.constexpr):
    """1 / rms of the token `program_id(0)`: of its queries if `program_id(1)` is 0, of its keys if it is 1."""
    # In 64 bits, as are all products with the number of a picture: a batch may have more than 2^31 numbers.
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    x = tl.load(qkv + (3 * row + part) * width + channel, mask=channel < width, other=0.0).to(tl.float32)
    mean = tl.sum(x * x) / width
    tl.store(inverse_rms + part.to(tl.int64) * tl.num_programs(0) + row, 1.0 / tl.sqrt(mean + eps))


@triton.jit
def load_part(qkv, part, row, inside, head, width, d: tl.constexpr):
    """Queries (`part` 0), keys (1) or values (2) of one head, float32 (tokens, d). `row` counts all tokens."""
    channel = head * d + tl.arange(0, d)
    place = (3 * row + part)[:, None] * width + channel[None, :]
    return tl.load(qkv + place, mask=inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_feature(qkv, part, row, inside, head, width, rows, inverse_rms, weight, d: tl.constexpr):
    """ReLU of queries or keys, float32 (tokens, d). If there is a norm they are normed and rounded to `qkv`'s dtype."""
    x = load_part(qkv, part, row, inside, head, width, d)
    if inverse_rms is not None:
        scale = tl.load(weight + head * d + tl.arange(0, d)).to(tl.float32)
        inverse = tl.load(inverse_rms + part * rows + row, mask=inside, other=0.0)
        x = (x * inverse[:, None] * scale[None, :]).to(qkv.dtype.element_ty).to(tl.float32)
    return tl.where(x < 0, 0.0, x)  # keeps NaN, which tl.maximum would drop


@triton.jit
def key_value_kernel(
    qkv,
    inverse_rms,
    key_weight,
    sums,
    tokens,
    d: tl.constexpr,
    RUN: tl.constexpr,
    TILE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Write S and z of one run of tokens, head and picture into `sums` (B, runs, h, d + 1, d).

    If `EXACT`, the operands are multiplied in the dtype of `qkv`, which holds them exactly; else in float32.
    """
    run, head, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    width, rows = heads * d, tl.num_programs(2).to(tl.int64) * tokens
    key_values = tl.zeros((d, d), tl.float32)
    keys = tl.zeros((d,), tl.float32)
    for start in range(0, min(RUN, tokens - run * RUN), TILE):
        token = run * RUN + start + tl.arange(0, TILE)
        row, inside = picture * tokens + token, token < tokens
        k = load_feature(qkv, 1, row, inside, head, width, rows, inverse_rms, key_weight, d)
        v = load_part(qkv, 2, row, inside, head, width, d)
        keys += tl.sum(k, axis=0)
        if EXACT:  # half the operands' size, and one product on tensor cores instead of three
            k, v = k.to(qkv.dtype.element_ty), v.to(qkv.dtype.element_ty)
        key_values = tl.dot(tl.trans(v), k, key_values, input_precision="tf32x3")
    store_sums(sums, run, head, picture, key_values, keys, d)


@triton.jit
def store_sums(sums, run, head, picture, matrix, vector, d: tl.constexpr):
    """Store a (d + 1) x d matrix of one run, head and picture: `matrix` and below it the row `vector`."""
    place = sums + ((picture * tl.num_programs(0) + run) * tl.num_programs(1) + head) * (d + 1) * d
    channel = tl.arange(0, d)
    tl.store(place + channel[:, None] * d + channel[None, :], matrix)
    tl.store(place + d * d + channel, vector)


@triton.jit
def load_sums(sums, head, heads, picture, d: tl.constexpr):
    """Load the matrix (d, d) and the last row (d) of one head from sums over all tokens (B, h, d + 1, d)."""
    place = sums + (picture * heads + head) * (d + 1) * d
    channel = tl.arange(0, d)
    return tl.load(place + channel[:, None] * d + channel[None, :]), tl.load(place + d * d + channel)


@triton.jit
def output_kernel(qkv, inverse_rms, query_weight, sums, out, tokens, eps, d: tl.constexpr, TILE: tl.constexpr):
    """Write the output of one tile of tokens, head and picture."""
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    width, rows = heads * d, tl.num_programs(2).to(tl.int64) * tokens
    row, inside = picture * tokens + token, token < tokens
    q = load_feature(qkv, 0, row, inside, head, width, rows, inverse_rms, query_weight, d)
    key_values, keys = load_sums(sums, head, heads, picture, d)
    numerator = tl.dot(q, tl.trans(key_values), input_precision="tf32x3")
    denominator = tl.sum(q * keys[None, :], axis=1) + eps
    channel = tl.arange(0, d)
    place = row[:, None] * width + head * d + channel[None, :]
    store(out + place, numerator / denominator[:, None], inside[:, None])


@triton.jit
def query_gradient_kernel(
    qkv,
    inverse_rms,
    query_weight,
    sums,
    gradient,
    dqkv,
    dsums,
    tokens,
    eps,
    d: tl.constexpr,
    RUN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write gradients of the normed queries of one run of tokens, head and picture, and its part of dS and dz."""
    run, head, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    width, rows = heads * d, tl.num_programs(2).to(tl.int64) * tokens
    key_values, keys = load_sums(sums, head, heads, picture, d)
    channel = head * d + tl.arange(0, d)
    matrix = tl.zeros((d, d), tl.float32)
    vector = tl.zeros((d,), tl.float32)
    for start in range(0, min(RUN, tokens - run * RUN), TILE):
        token = run * RUN + start + tl.arange(0, TILE)
        row, inside = picture * tokens + token, token < tokens
        q = load_feature(qkv, 0, row, inside, head, width, rows, inverse_rms, query_weight, d)
        place = row[:, None] * width + channel[None, :]
        g = tl.load(gradient + place, mask=inside[:, None], other=0.0).to(tl.float32)
        # A token beyond the last must not bring 0 / 0 into the sums.
        denominator = tl.where(inside, tl.sum(q * keys[None, :], axis=1) + eps, 1.0)
        dnum = g / denominator[:, None]
        through = tl.dot(dnum, key_values, input_precision="tf32x3")
        dden = -tl.sum(through * q, axis=1) / denominator
        dq = through + dden[:, None] * keys[None, :]
        # The slope of ReLU at 0 is 0, as in PyTorch.
        dq = tl.where(q <= 0, 0.0, dq)
        tl.store(dqkv + place + 2 * row[:, None] * width, dq.to(dqkv.dtype.element_ty), mask=inside[:, None])
        matrix = tl.dot(tl.trans(dnum), q, matrix, input_precision="tf32x3")
        vector += tl.sum(dden[:, None] * q, axis=0)
    store_sums(dsums, run, head, picture, matrix, vector, d)


@triton.jit
def key_value_gradient_kernel(qkv, inverse_rms, key_weight, dsums, dqkv, tokens, d: tl.constexpr, TILE: tl.constexpr):
    """Write gradients of the normed keys and of the values of one tile of tokens, head and picture."""
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    width, rows = heads * d, tl.num_programs(2).to(tl.int64) * tokens
    row, inside = picture * tokens + token, token < tokens
    k = load_feature(qkv, 1, row, inside, head, width, rows, inverse_rms, key_weight, d)
    v = load_part(qkv, 2, row, inside, head, width, d)
    matrix, vector = load_sums(dsums, head, heads, picture, d)
    dk = tl.dot(v, matrix, input_precision="tf32x3") + vector[None, :]
    dk = tl.where(k <= 0, 0.0, dk)
    dv = tl.dot(k, tl.trans(matrix), input_precision="tf32x3")
    keys = dqkv + (3 * row[:, None] + 1) * width + head * d + tl.arange(0, d)[None, :]
    tl.store(keys, dk.to(dqkv.dtype.element_ty), mask=inside[:, None])
    tl.store(keys + width, dv.to(dqkv.dtype.element_ty), mask=inside[:, None])


@triton.jit
def norm_gradient_kernel(
    qkv, inverse_rms, query_weight, key_weight, dqkv, dweights, rows, share, width, BLOCK: tl.constexpr
):
    """Take the gradients of `share` tokens through the norm, in place in `dqkv`.

    They are gradients of queries if `program_id(1)` is 0, of keys if it is 1. Their part of the gradient of the norm's
    weight goes into `dweights` (2, programs, D).
    """
    part = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    if part == 0:
        weight = tl.load(query_weight + channel, mask=inside, other=0.0).to(tl.float32)
    else:
        weight = tl.load(key_weight + channel, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * share
    for row in range(first, min(first + share, rows)):
        place = (3 * row + part) * width + channel
        inverse = tl.load(inverse_rms + part.to(tl.int64) * rows + row)
        normed = tl.load(qkv + place, mask=inside, other=0.0).to(tl.float32) * inverse
        g = tl.load(dqkv + place, mask=inside, other=0.0).to(tl.float32)
        dweight += g * normed
        mean = tl.sum(g * weight * normed) / width
        # The norm divides by the rms of x itself, so the part of g along the normed x does not move the result.
        dx = inverse * (g * weight - normed * mean)
        tl.store(dqkv + place, dx.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(dweights + (part * tl.num_programs(0) + tl.program_id(0)) * width + channel, dweight, mask=inside)


def linear_attention(qkv_BNE: Tensor, norms: NormWeights | None, head_dim: int, eps: float) -> Tensor:
    """Compute what `reference.linear_attention` states. It can be differentiated once."""
    query_weight, key_weight = norms if norms is not None else (None, None)
    return LinearAttentionFunction.apply(qkv_BNE, query_weight, key_weight, head_dim, eps)


class LinearAttentionFunction(torch.autograd.Function):
    """The forward kernels with their backward ones.

    For the backward pass it keeps its arguments, the norm's statistics (2 floats for a token) and the key-value sums
    ((d + 1) * D floats for a picture).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv_BNE: Tensor,
        query_weight_D: Tensor | None,
        key_weight_D: Tensor | None,
        head_dim: int,
        eps: float,
    ) -> Tensor:
        """Attention (B, N, D) of `qkv_BNE` of any strides."""
        qkv_BNE = qkv_BNE.contiguous()
        if query_weight_D is not None:
            query_weight_D, key_weight_D = query_weight_D.contiguous(), key_weight_D.contiguous()
        inverse_rms = None if query_weight_D is None else inverse_root_mean_squares(qkv_BNE)
        sums = key_value_sums(qkv_BNE, inverse_rms, key_weight_D, head_dim)
        ctx.save_for_backward(qkv_BNE, query_weight_D, key_weight_D, inverse_rms, sums)
        ctx.head_dim, ctx.eps = head_dim, eps
        batch, tokens, heads = *qkv_BNE.shape[:2], sums.shape[1]
        out_BND = qkv_BNE.new_empty(batch, tokens, heads * head_dim)
        grid = (triton.cdiv(tokens, TILE), heads, batch)
        arguments = (qkv_BNE, inverse_rms, query_weight_D, sums, out_BND, tokens, eps)
        output_kernel[grid](*arguments, d=head_dim, TILE=TILE)
        return out_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_BND: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the queries, keys and values and, if there is a norm, of its weights."""
        qkv_BNE, query_weight_D, key_weight_D, inverse_rms, sums = ctx.saved_tensors
        # In float16, gradients behind the norm would overflow although the norm brings them back into its range.
        between = torch.float32 if qkv_BNE.dtype == torch.float16 else qkv_BNE.dtype
        dqkv_BNE = torch.empty_like(qkv_BNE, dtype=between)
        dsums = query_gradients(qkv_BNE, inverse_rms, query_weight_D, sums, gradient_BND, dqkv_BNE, ctx.eps)
        batch, tokens, heads = *qkv_BNE.shape[:2], sums.shape[1]
        grid = (triton.cdiv(tokens, TILE), heads, batch)
        arguments = (qkv_BNE, inverse_rms, key_weight_D, dsums, dqkv_BNE, tokens)
        key_value_gradient_kernel[grid](*arguments, d=ctx.head_dim, TILE=TILE)
        if inverse_rms is None:
            return dqkv_BNE.to(qkv_BNE.dtype), None, None, None, None
        dweights = norm_gradients(qkv_BNE, inverse_rms, query_weight_D, key_weight_D, dqkv_BNE)
        weights = dweights[0].to(query_weight_D.dtype), dweights[1].to(key_weight_D.dtype)
        return dqkv_BNE.to(qkv_BNE.dtype), *weights, None, None


def inverse_root_mean_squares(qkv_BNE: Tensor) -> Tensor:
    """1 / rms of each token's queries and keys: float32 (2, B, N)."""
    batch, tokens, width = qkv_BNE.shape[0], qkv_BNE.shape[1], qkv_BNE.shape[2] // 3
    inverse_rms = qkv_BNE.new_empty(2, batch, tokens, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    inverse_rms_kernel[(batch * tokens, 2)](qkv_BNE, inverse_rms, width, NORM_EPS, BLOCK=block, **ROW_LAUNCH)
    return inverse_rms


def key_value_sums(qkv_BNE: Tensor, inverse_rms: Tensor | None, key_weight_D: Tensor | None, head_dim: int) -> Tensor:
    """S and z of each head: float32 (B, h, d + 1, d)."""
    batch, tokens, heads = qkv_BNE.shape[0], qkv_BNE.shape[1], qkv_BNE.shape[2] // (3 * head_dim)
    runs = triton.cdiv(tokens, RUN)
    sums = qkv_BNE.new_empty(batch, runs, heads, head_dim + 1, head_dim, dtype=torch.float32)
    # The interpreter multiplies the bits of bfloat16 as if they were integers, so there operands become float32.
    exact = qkv_BNE.dtype != torch.float32 and not INTERPRETED
    arguments = (qkv_BNE, inverse_rms, key_weight_D, sums, tokens)
    sizes = {"d": head_dim, "RUN": RUN, "TILE": SUM_TILE}
    key_value_kernel[(runs, heads, batch)](*arguments, **sizes, EXACT=exact, **KEY_VALUE_LAUNCH)
    return sums.sum(1)


def query_gradients(
    qkv_BNE: Tensor,
    inverse_rms: Tensor | None,
    query_weight_D: Tensor | None,
    sums: Tensor,
    gradient_BND: Tensor,
    dqkv_BNE: Tensor,
    eps: float,
) -> Tensor:
    """Write the gradients of the normed queries into `dqkv_BNE`; return those of S and z, float32 (B, h, d + 1, d)."""
    batch, tokens = qkv_BNE.shape[:2]
    heads, head_dim = sums.shape[1], sums.shape[3]
    runs = triton.cdiv(tokens, RUN)
    dsums = sums.new_empty(batch, runs, heads, head_dim + 1, head_dim)
    arguments = (qkv_BNE, inverse_rms, query_weight_D, sums, gradient_BND.contiguous(), dqkv_BNE, dsums, tokens, eps)
    query_gradient_kernel[(runs, heads, batch)](*arguments, d=head_dim, RUN=RUN, TILE=SUM_TILE)
    return dsums.sum(1)


def norm_gradients(
    qkv_BNE: Tensor, inverse_rms: Tensor, query_weight_D: Tensor, key_weight_D: Tensor, dqkv_BNE: Tensor
) -> Tensor:
    """Take `dqkv_BNE` through the norms, in place; return the gradients of their weights, float32 (2, D)."""
    rows, width = inverse_rms[0].numel(), query_weight_D.numel()
    share = max(LEAST_ROWS, triton.cdiv(rows, NORM_PROGRAMS))
    grid = (triton.cdiv(rows, share), 2)
    dweights = inverse_rms.new_empty(2, grid[0], width)
    arguments = (qkv_BNE, inverse_rms, query_weight_D, key_weight_D, dqkv_BNE, dweights, rows, share, width)
    norm_gradient_kernel[grid](*arguments, BLOCK=triton.next_power_of_2(width), **ROW_SUM_LAUNCH)
    return dweights.sum(1)


def ahead_of_time() -> list[Build]:
    """The kernels at the 1.6B's 2240 channels, heads of 32 and any number of tokens; one of them also without norm."""
    builds = [
        _build(kernel, dtype, tile, launch)
        for kernel, tile, launch in (
            (inverse_rms_kernel, TILE, ROW_LAUNCH),
            (norm_gradient_kernel, TILE, ROW_SUM_LAUNCH),
            (key_value_kernel, SUM_TILE, KEY_VALUE_LAUNCH),
            (output_kernel, TILE, {}),
            (query_gradient_kernel, SUM_TILE, {}),
            (key_value_gradient_kernel, TILE, {}),
        )
        for dtype in ("bf16", "fp32")
    ]
    return [*builds, _build(output_kernel, "fp16", TILE, {}, inverse_rms=None, query_weight=None)]


def _build(kernel: triton.JITFunction, dtype: str, tile: int, launch: dict[str, int], **absent: None) -> Build:
    """One kernel with the types that its arguments have; those in `absent` are None."""
    constants = {"d": 32, "RUN": RUN, "TILE": tile, "BLOCK": 4096, "EXACT": dtype != "fp32", **absent}
    own = {name: value for name, value in constants.items() if name in kernel.arg_names}
    wide = ("inverse_rms", "query_weight", "key_weight", "sums", "dsums", "dweights")
    pointers = dict.fromkeys(("qkv", "dqkv", "out", "gradient"), f"*{dtype}") | dict.fromkeys(wide, "*fp32")
    known = pointers | {"eps": "fp32"}
    types = {name: known.get(name, "i32") for name in kernel.arg_names if name not in own}
    divisible = frozenset(name for name in types if name in pointers or name in ("width", "tokens"))
    return Build(kernel, types, own, divisible, launch)
