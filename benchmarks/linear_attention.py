"""Time of ReLU linear attention with QK norm: ours against eager, torch.compile, the materialised matrix and softmax.

    python benchmarks/linear_attention.py [--rounds 20]

Ours is what the network calls: on a GPU the Triton kernels, on the CPU plain PyTorch, the same as eager. All sides norm
queries and keys alike; softmax attention (torch's SDPA) computes another function, and is there as what linear
attention replaces. Sizes: on a GPU that of the published 1.6B at 1024 pixels, on the CPU small ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from common import DEVICE, Results, command_line, compiled, start
from sides import OURS, Side, compare, print_table
from torch import Tensor

from kernels.linear_attention import linear_attention, reference

EPS = 1e-8
HEAD_DIM = 32
# pictures, tokens, channels, dtype
SIZES = {
    "cuda": [(8, 1024, 2240, torch.bfloat16)],
    "cpu": [(2, 256, 256, torch.float32), (2, 256, 256, torch.bfloat16)],
    "tiny": [(1, 17, 64, torch.float32)],
}


def ours(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    """What the network calls."""
    return linear_attention(qkv, (query_weight, key_weight), HEAD_DIM, EPS)


def eager(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    """Plain PyTorch."""
    return reference.linear_attention(qkv, (query_weight, key_weight), HEAD_DIM, EPS)


def heads_of(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normed queries, normed keys and values, each (B, h, N, d)."""
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = (F.rms_norm(x, w.shape, w.to(x.dtype), reference.NORM_EPS) for x, w in ((q, query_weight), (k, key_weight)))
    q, k, v = (x.unflatten(2, (-1, HEAD_DIM)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def materialised(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    """By the matrix of all weights between tokens, in the dtype of `qkv`."""
    q, k, v = heads_of(qkv, query_weight, key_weight)
    weights = F.relu(q) @ F.relu(k).transpose(2, 3)
    out = weights @ v / (weights.sum(3, keepdim=True) + EPS)
    return out.transpose(1, 2).flatten(2)


def summed(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    """The definition for float64: key-value sums, as the matrix would not fit."""
    q, k, v = heads_of(qkv, query_weight, key_weight)
    q, k = F.relu(q), F.relu(k)
    out = q @ (k.transpose(2, 3) @ v) / (q @ k.sum(2).unsqueeze(3) + EPS)
    return out.transpose(1, 2).flatten(2)


def softmax(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    """Softmax attention by torch's own kernels."""
    return F.scaled_dot_product_attention(*heads_of(qkv, query_weight, key_weight)).transpose(1, 2).flatten(2)


def measure(batch: int, tokens: int, width: int, dtype: torch.dtype, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """The rows of one size."""
    torch.compiler.reset()  # past a number of shapes the compiled side would silently run uncompiled
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * width, device=DEVICE, dtype=dtype)
    weights = 1 + 0.1 * torch.randn(2, width, device=DEVICE)
    sides = [
        Side(OURS, ours, summed),
        Side("eager", eager, summed),
        Side("torch.compile", compiled(eager, tiny), summed),
        Side("materialised", materialised, summed),
        Side("SDPA", softmax, softmax, "another function: softmax"),
    ]
    size = {"batch": batch, "tokens": tokens, "width": width, "dtype": str(dtype)}
    return [size | row for row in compare(sides, (qkv, weights[0], weights[1]), rounds)]


def main() -> None:
    """Print a table for each size, and keep all rows."""
    arguments = start(command_line(__doc__, rounds=20))
    results = Results("linear_attention", arguments.out)
    for batch, tokens, width, dtype in SIZES[arguments.size]:
        found = measure(batch, tokens, width, dtype, arguments.rounds, arguments.tiny)
        results.add(*found)
        print_table(f"{batch} x {tokens} tokens of {width} channels, {dtype}", found)
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
