"""Time of one optimizer step and size of its state on SANA's shapes, against named peers in the same run.

    python benchmarks/optimizer_step.py [--rounds 20] [--width 224] [--depth 12] [--dtypes float32 bfloat16]

On the CPU the default is 10 million float32 parameters, SANA-1.5's kinds of layers at a tenth of its width; on a GPU
two blocks of its own width, 0.2 billion, in float32 and in bfloat16. Peers: came-pytorch (32 bits), bitsandbytes'
AdamW8bit, torch's fused AdamW, and a plain statement of the published CAME-8bit, whose chunks are rows. A peer that is
not installed has a row that says so. Before its time is printed each side steps in float32 beside its own reference,
and a side that disagrees with it has no time.

Bandwidth is 14 bytes a parameter (8 in bfloat16: read gradient, code and parameter, write code and parameter) over the
time, beside that of a measured copy. On a GPU the share of the copy's bandwidth is also given by the 27 (15) bytes that
the passes of the Triton kernels move: of the whole step, Python's part included, and by the profiler of the kernels of
each pass and of all passes together (rows with a `pass`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from common import (
    DEVICE,
    FAILED_WHILE_TIMED,
    Results,
    command_line,
    copy_bandwidth,
    peer,
    reason_of,
    start,
    timed_in_turns,
)
from row_chunks import RowChunkCame
from torch import nn
from torch.autograd import DeviceType
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from kernels.came8bit import Came, Came8bit
from kernels.optimizers import build_optimizer, state_bytes_by_kind
from model.network import NetworkConfig, Sana

LEARNING_RATE = 1e-4
Build = Callable[[Iterable[Parameter]], Optimizer]


def row_chunks(parameters: Iterable[Parameter]) -> Optimizer:
    """The published method."""
    return RowChunkCame(parameters, LEARNING_RATE)


def came_pytorch_step(parameters: Iterable[Parameter]) -> Optimizer:
    """came-pytorch's 32 bits."""
    import came_pytorch

    return came_pytorch.CAME(parameters, lr=LEARNING_RATE)


def named(name: str) -> Build:
    """An optimizer of this project by name."""
    return lambda parameters: build_optimizer(name, parameters, LEARNING_RATE, 0.0)


def dynamic(parameters: Iterable[Parameter]) -> Optimizer:
    """CAME-8bit with bitsandbytes' map."""
    return Came8bit(parameters, LEARNING_RATE, map="dynamic")


def plain_came(parameters: Iterable[Parameter]) -> Optimizer:
    """CAME of 32 bits in plain PyTorch, which the others of its family follow."""
    return Came(parameters, LEARNING_RATE, kernels="reference")


def plain_adamw(parameters: Iterable[Parameter]) -> Optimizer:
    """AdamW without fused kernels."""
    return torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0, fused=False)


SIDES: dict[str, Build] = {
    "came8bit": named("came8bit"),
    "adamw": named("adamw"),
    "published row chunks": row_chunks,
    "came8bit, dynamic map": dynamic,
    "came": named("came"),
    "came-pytorch": came_pytorch_step,
    "adamw8bit": named("adamw8bit"),
}
NEEDS = {"came-pytorch": "came_pytorch", "adamw8bit": "bitsandbytes"}
# what each side must follow, and how far apart paths may end, of the way that the reference went
REFERENCES: dict[str, tuple[Build, float]] = {
    "came8bit": (plain_came, 0.05),
    "came8bit, dynamic map": (plain_came, 0.05),
    "came": (plain_came, 1e-4),
    "published row chunks": (plain_came, 0.05),
    "came-pytorch": (plain_came, 1e-4),
    "adamw8bit": (plain_adamw, 0.2),
    "adamw": (plain_adamw, 1e-4),
}
NOTES = {
    "came-pytorch": "another function on 1x1 convolutions, which it does not factor",
    "published row chunks": "coarser: one scale for up to 2048 rows",
}
LEAST_BYTES = {torch.float32: 14, torch.bfloat16: 8}
PASSES = {
    torch.float32: {"squares": 4, "norms": 4, "surprise": 5, "apply": 14},
    torch.bfloat16: {"squares": 2, "norms": 2, "surprise": 3, "apply": 8},
}
"""Bytes a parameter that each pass of the Triton step moves (`kernels/came8bit/step_in_triton.py`)."""


def deviation(side: str) -> float:
    """How far a side ends from its reference after five steps over matrices, of the way that the reference went."""
    ends = []
    for build in (SIDES[side], REFERENCES[side][0]):
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(shape, generator=generator) for shape in ((224, 224), (300, 130))]
        parameters = [Parameter(tensor.clone().to(DEVICE)) for tensor in start]
        optimizer = build(parameters)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE)
            optimizer.step()
        ends.append(torch.cat([(p.detach().cpu() - s).flatten() for p, s in zip(parameters, start, strict=True)]))
    return ((ends[0] - ends[1]).norm() / ends[1].norm()).item()


def make_network(width: int, depth: int, dtype: torch.dtype) -> nn.Module:
    """SANA's kinds of layers with gradients."""
    config = NetworkConfig(
        in_channels=32,
        hidden_size=width,
        depth=depth,
        linear_head_dim=32,
        cross_heads=width // 112 or 1,
        mlp_ratio=2.5,
        patch_size=1,
        caption_channels=width,
        qk_norm=True,
        numerics="nvlabs",
    )
    with torch.device(DEVICE):
        network = Sana(config).to(dtype)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return network


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict | list):
        return sum(tensor_bytes(one) for one in (value.values() if isinstance(value, dict) else value))
    return 0


def able_sides() -> tuple[dict[str, float], dict[str, str]]:
    """How far each side is from its reference; and of a side that has no time, why."""
    deviations: dict[str, float] = {}
    problems: dict[str, str] = {}
    for side in SIDES:
        if side in NEEDS and peer(NEEDS[side]) is None:
            problems[side] = f"{NEEDS[side]} is not installed"
            continue
        try:
            deviations[side] = deviation(side)
        except Exception as error:
            problems[side] = reason_of(error)
            continue
        if not deviations[side] <= REFERENCES[side][1]:
            problems[side] = f"disagrees with its reference by {deviations[side]:.3f}: no time"
    return deviations, problems


def measure(width: int, depth: int, dtype: torch.dtype, rounds: int, size: str) -> list[dict[str, Any]]:
    """A row for each side: time, bandwidth, state and how it agrees with its reference; on a GPU one for each pass."""
    deviations, problems = able_sides()
    optimizers: dict[str, Optimizer] = {}
    for side in SIDES:
        if side not in problems:
            optimizers[side] = SIDES[side](make_network(width, depth, dtype).parameters())
    seconds = timed_in_turns({side: optimizer.step for side, optimizer in optimizers.items()}, rounds)
    about = {"dtype": str(dtype).removeprefix("torch."), "width": width, "depth": depth}
    copied = copy_bandwidth(size)
    passes = pass_seconds(optimizers["came8bit"]) if DEVICE == "cuda" and "came8bit" in optimizers else {}
    rows = [about | {"copy_GB_per_s": copied / 1e9}]
    for side in SIDES:
        row = about | {"optimizer": side, "problem": problems.get(side), "deviation": deviations.get(side)}
        if side in optimizers and side not in seconds:
            row["problem"] = FAILED_WHILE_TIMED
        elif side in optimizers:
            row |= speed_of(side, seconds, optimizers[side], dtype, copied)
        rows.append(row)
    count = sum(parameter.numel() for parameter in make_network(width, depth, dtype).parameters())
    if passes:
        passes["all"] = sum(passes.values())
    for name, taken in passes.items():
        moved = (PASSES[dtype] | {"all": sum(PASSES[dtype].values())})[name] * count
        rows.append(about | {"pass": name, "seconds": taken, "GB_per_s": moved / taken / 1e9})
        rows[-1]["of_copy"] = moved / taken / copied
    return rows


def speed_of(
    side: str, seconds: dict[str, float], optimizer: Optimizer, dtype: torch.dtype, copied: float
) -> dict[str, Any]:
    """The figures of a side that was timed; `copied` is the bandwidth of a copy, bytes a second."""
    taken = seconds[side]
    count = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    ours = side.startswith("came8bit")
    return {
        "parameters": count,
        "seconds": taken,
        "state_bytes_per_parameter": sum(tensor_bytes(dict(one)) for one in optimizer.state.values()) / count,
        **{f"of_{name}": taken / seconds[name] if name in seconds else None for name in ("came-pytorch", "adamw8bit")},
        "of_adamw": taken / seconds["adamw"] if "adamw" in seconds else None,
        "note": NOTES.get(side),
        "GB_per_s_of_least_bytes": LEAST_BYTES[dtype] * count / taken / 1e9 if ours else None,
        "of_copy_by_passes": (
            sum(PASSES[dtype].values()) * count / taken / copied if ours and DEVICE == "cuda" else None
        ),
        "by_kind": state_bytes_by_kind(optimizer) if ours else None,
    }


def pass_seconds(optimizer: Optimizer, steps: int = 5) -> dict[str, float]:
    """Seconds of each pass over memory of one step of CAME-8bit: what its kernels take on the GPU, launches left out.

    A step's kernels over tiles are squares, norms and surprise, in this order, once for each set of parameters that are
    alike (`kernels.came8bit.step_in_triton.step`).
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(steps):
            optimizer.step()
        torch.cuda.synchronize()
    ran = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    ran.sort(key=lambda event: event.time_range.start)
    taken = dict.fromkeys(("squares", "norms", "surprise", "apply"), 0.0)
    tiles = [event for event in ran if event.name.startswith("tiles_kernel")]
    for number, event in enumerate(tiles):
        taken[("squares", "norms", "surprise")[number % 3]] += event.time_range.elapsed_us() / 1e6 / steps
    for event in ran:
        if event.name.startswith("apply_kernel"):
            taken["apply"] += event.time_range.elapsed_us() / 1e6 / steps
    return {name: seconds for name, seconds in taken.items() if seconds}


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows of one dtype as Markdown."""
    print(rows[0])
    columns = ("optimizer", "ms", "of came-pytorch", "of adamw8bit", "of adamw", "GB/s by the least bytes")
    print(f"\n| {' | '.join(columns)} | of copy by passes | state bytes | note |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row.get("problem"):
            print(f"| {row['optimizer']} | {row['problem']} | | | | | | | |")
        elif "optimizer" in row:
            figures = [shown(1e3 * row["seconds"], ".2f")]
            figures += [shown(row[f"of_{name}"], ".2f") for name in ("came-pytorch", "adamw8bit", "adamw")]
            figures += [shown(row["GB_per_s_of_least_bytes"], ".1f"), shown(row["of_copy_by_passes"], ".2f")]
            figures.append(f"{row['state_bytes_per_parameter']:.2f}")
            print(f"| {row['optimizer']} | {' | '.join(figures)} | {row['note'] or ''} |")
        elif "pass" in row:
            print("pass {pass}: {GB_per_s:.0f} GB/s, {of_copy:.2f} of a copy".format(**row))


def main() -> None:
    """Print a table for each dtype, and keep the rows."""
    wide, deep, dtypes = {
        "cuda": (2240, 2, ["bfloat16", "float32"]),
        "cpu": (224, 12, ["float32"]),
    }[DEVICE]
    parser = command_line(__doc__, rounds=20)
    parser.add_argument("--width", type=int, default=wide, help=f"of the network's parameters (default: {wide})")
    parser.add_argument("--depth", type=int, default=deep, help=f"blocks of them (default: {deep})")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=dtypes)
    arguments = start(parser)
    if arguments.tiny:
        arguments.width, arguments.depth = 64, 1
    results = Results("optimizer_step", arguments.out)
    for dtype in arguments.dtypes:
        torch.manual_seed(0)
        sizes = (arguments.width, arguments.depth, getattr(torch, dtype), arguments.rounds, arguments.size)
        rows = measure(*sizes)
        results.add(*rows)
        print_table(rows)
    print(results.path)


if __name__ == "__main__":
    main()
