"""Time of AdaLN modulation and of the gated residual: ours against eager and torch.compile.

    python benchmarks/modulation.py [--rounds 20]

Ours is what the network calls: on a GPU the Triton kernels, on the CPU plain PyTorch, the same as eager. Sizes: on a
GPU those of the published 1.6B at 1024 pixels, on the CPU small ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE, Results, command_line, compiled, start
from sides import OURS, Side, compare, print_table
from torch import Tensor

from kernels.modulation import gated_residual, modulate, reference

# pictures, tokens, channels, dtype
SIZES = {
    "cuda": [(8, 1024, 2240, torch.bfloat16)],
    "cpu": [(2, 256, 256, torch.float32), (2, 256, 256, torch.bfloat16)],
    "tiny": [(1, 17, 64, torch.float32)],
}
Operation = Callable[..., Tensor]


def eager_modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """The reference in the dtype of its tokens."""
    return reference.modulate(x_BND, shift_B1D, scale_B1D, x_BND.dtype)


OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "modulate": (modulate, eager_modulate),
    "gated_residual": (gated_residual, reference.gated_residual),
}


def arguments_of(name: str, batch: int, tokens: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Tokens, and rows of time that are chunks of one tensor, as a block's are."""
    torch.manual_seed(0)
    x, y = (torch.randn(batch, tokens, width, device=DEVICE, dtype=dtype) for _ in range(2))
    shift, scale, gate = torch.randn(batch, 3, width, device=DEVICE, dtype=dtype).chunk(3, dim=1)
    return [x, shift, scale] if name == "modulate" else [x, gate, y]


def measure(
    name: str, batch: int, tokens: int, width: int, dtype: torch.dtype, rounds: int, tiny: bool
) -> list[dict[str, Any]]:
    """The rows of one operation at one size."""
    torch.compiler.reset()  # past a number of shapes the compiled side would silently run uncompiled
    ours, eager = OPERATIONS[name]
    sides = [
        Side(OURS, ours, eager),
        Side("eager", eager, eager),
        Side("torch.compile", compiled(eager, tiny), eager),
    ]
    size = {"operation": name, "batch": batch, "tokens": tokens, "width": width, "dtype": str(dtype)}
    return [size | row for row in compare(sides, arguments_of(name, batch, tokens, width, dtype), rounds)]


def main() -> None:
    """Print a table for each operation and size, and keep all rows."""
    arguments = start(command_line(__doc__, rounds=20))
    results = Results("modulation", arguments.out)
    for name in OPERATIONS:
        for batch, tokens, width, dtype in SIZES[arguments.size]:
            found = measure(name, batch, tokens, width, dtype, arguments.rounds, arguments.tiny)
            results.add(*found)
            print_table(f"{name}: {batch} x {tokens} tokens of {width} channels, {dtype}", found)
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
