"""Time of the Mix-FFN's inside (SiLU, depth-wise 3x3 convolution, GLU) against eager and compiled PyTorch in one run.

    python benchmarks/mix_feed_forward.py [--rounds 50] [--threads 1]

The sides take turns, and the least of their times counts. A side whose result or gradients are off the float64 ones by
more than its dtype allows gets no time. Ratios are to eager PyTorch: above 1 is faster than that.

* `auto`: what this project takes on this device (on the CPU that is the same code as eager)
* `triton`: the Triton kernels, on a GPU
* `eager`, `compiled`: the plain reference, as it is and under torch.compile
* `channels first`: the layout of diffusers' GLUMBConv, from and to images (B, C, H, W)

On a GPU the sizes are those of SANA-1.5's 1.6B (5600 inner channels), on the CPU those of the embedded default (640).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    FAILED_WHILE_TIMED,
    Results,
    command_line,
    compiled,
    reason_of,
    start,
    timed_in_turns,
)
from torch import Tensor

from kernels.mix_feed_forward import mix_feed_forward
from kernels.mix_feed_forward.reference import mix_feed_forward as reference

# images, grid, inner channels
SIZES = {
    "cuda": [(8, (32, 32), 5600)],
    "cpu": [(64, (4, 4), 640), (4, (16, 16), 640)],
    "tiny": [(1, (3, 4), 32)],
}
# of the largest entry; in bfloat16 the eager sides round between their operations
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
PASSES = ("forward", "forward and backward")
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


class Problem(NamedTuple):
    """Leaves of one dtype (tokens, weights, bias), the output's gradient, and the exact values (in float64) of all."""

    leaves: tuple[Tensor, Tensor, Tensor]
    gradient: Tensor
    exact: tuple[Tensor, ...]


def make_problem(images: int, size: tuple[int, int], inner: int, dtype: torch.dtype) -> Problem:
    """Random activations, and weights as PyTorch's convolutions start with."""
    torch.manual_seed(0)
    tokens, channels = size[0] * size[1], 2 * inner
    x = torch.randn(images, tokens, channels, device=DEVICE, dtype=dtype)
    weight = torch.empty(channels, 1, 3, 3, device=DEVICE).uniform_(-1 / 3, 1 / 3).to(dtype)
    bias = torch.empty(channels, device=DEVICE).uniform_(-1 / 3, 1 / 3).to(dtype)
    gradient = torch.randn(images, tokens, inner, device=DEVICE, dtype=dtype)
    doubles = tuple(tensor.double().requires_grad_() for tensor in (x, weight, bias))
    out = reference(*doubles, size)
    exact = (out.detach(), *torch.autograd.grad(out, doubles, gradient.double()))
    return Problem(tuple(tensor.requires_grad_() for tensor in (x, weight, bias)), gradient, exact)


def channels_first(x_BCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The operation on images, as diffusers' GLUMBConv computes it."""
    value, gate = F.conv2d(F.silu(x_BCHW), weight, bias, padding=1, groups=len(bias)).chunk(2, dim=1)
    return value * F.silu(gate)


def to_image(tokens_BNC: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) as contiguous (B, C, H, W)."""
    return tokens_BNC.detach().transpose(1, 2).unflatten(2, size).contiguous()


def to_tokens(image_BCHW: Tensor) -> Tensor:
    """The inverse of `to_image`."""
    return image_BCHW.flatten(2).transpose(1, 2)


def make_sides(size: tuple[int, int], tiny: bool) -> dict[str, Operation]:
    """Every side that runs on this device, on tokens."""
    sides: dict[str, Operation] = {
        "eager": lambda *leaves: reference(*leaves, size),
        "compiled": compiled(lambda *leaves: reference(*leaves, size), tiny),
        "auto": lambda *leaves: mix_feed_forward(*leaves, size, "auto"),
    }
    if DEVICE == "cuda":
        sides["triton"] = lambda *leaves: mix_feed_forward(*leaves, size, "triton")
    return sides


def with_gradients(operation: Operation, leaves: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    """The operation's value and the gradients of its leaves."""
    out = operation(*leaves)
    return out, *torch.autograd.grad(out, leaves, gradient)


def error_of(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest difference of any value or gradient, relative to the largest entry of its kind; NaN if one is NaN."""
    errors = [(one - other).abs().max() / other.abs().max() for one, other in zip(found, exact, strict=True)]
    return torch.stack(errors).max().item()


def measure(
    images: int, size: tuple[int, int], inner: int, dtype: torch.dtype, rounds: int, tiny: bool
) -> list[dict[str, Any]]:
    """Rows of one size and dtype: each side's error, and its times if that is within bounds."""
    torch.compiler.reset()  # past a number of shapes the compiled side would silently run uncompiled
    problem = make_problem(images, size, inner, dtype)
    image, image_gradient = (to_image(tensor, size) for tensor in (problem.leaves[0], problem.gradient))
    arguments = {name: (side, problem.leaves, problem.gradient) for name, side in make_sides(size, tiny).items()}
    image_leaves = (image.requires_grad_(), *problem.leaves[1:])
    arguments["channels first"] = (channels_first, image_leaves, image_gradient)
    errors = {}
    problems: dict[str, str] = {}
    for name, side in arguments.items():
        try:
            found = with_gradients(*side)
        except Exception as error:
            problems[name] = reason_of(error)
            continue
        if name == "channels first":
            found = (to_tokens(found[0]), to_tokens(found[1]), *found[2:])
        errors[name] = error_of(found, problem.exact)
        if not errors[name] <= TOLERANCE[dtype]:
            problems[name] = f"off by {errors[name]:.1e}"
    agreeing = {name: side for name, side in arguments.items() if name not in problems}
    with torch.no_grad():
        forward = {name: lambda side=side: side[0](*side[1]) for name, side in agreeing.items()}
        times = {PASSES[0]: timed_in_turns(forward, rounds)}
    both = {name: lambda side=side: with_gradients(*side) for name, side in agreeing.items()}
    times[PASSES[1]] = timed_in_turns(both, rounds)
    shape = {"images": images, "grid": list(size), "inner": inner, "dtype": str(dtype).removeprefix("torch.")}
    return [
        shape
        | {"pass": kind, "side": name, "error": errors.get(name)}
        | {"problem": problems.get(name) or (None if name in times[kind] else FAILED_WHILE_TIMED)}
        | speed_of(name, times[kind])
        for kind in PASSES
        for name in arguments
    ]


def speed_of(name: str, times: dict[str, float]) -> dict[str, float | None]:
    """Milliseconds and the ratio to eager; none of a side that disagrees, or whose peer does."""
    eager, own = times.get("eager"), times.get(name)
    return {"ms": own and 1e3 * own, "times_as_fast_as_eager": own and eager and eager / own}


def line_of(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    size = f"{row['images']} x {row['grid'][0]}x{row['grid'][1]} x {row['inner']}"
    own, ratio = row["ms"], row["times_as_fast_as_eager"]
    speed = f"{own:.3f}" if own else row["problem"]
    compared = f"{ratio:.2f}" if ratio else ""
    error = "" if row["error"] is None else f"{row['error']:.1e}"
    return f"| {size} | {row['dtype']} | {row['pass']} | {row['side']} | {speed} | {compared} | {error} |"


def main() -> None:
    """Print the table and keep it."""
    arguments = start(command_line(__doc__, rounds=50))
    torch.backends.cudnn.allow_tf32 = False
    print("\n| images x grid x inner | dtype | pass | side | ms | times as fast as eager | error |")
    print("|---|---|---|---|---|---|---|")
    results = Results("mix_feed_forward", arguments.out)
    for problem in SIZES[arguments.size]:
        for dtype in TOLERANCE:
            found = measure(*problem, dtype, arguments.rounds, arguments.tiny)
            results.add(*found)
            print(*map(line_of, found), sep="\n", flush=True)
    print(f"\nkept in {results.path}")


if __name__ == "__main__":
    main()
