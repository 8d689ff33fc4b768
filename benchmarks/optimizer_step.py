"""Time of one optimizer step and size of its state on SANA's shapes, against named peers in the same run.

    python benchmarks/optimizer_step.py [--rounds 20] [--width 224] [--depth 12] [--dtype float32]

The default on the CPU is 10 million parameters, SANA-1.5's kinds of layers at a tenth of its width; on a GPU two blocks
of its own width, 0.2 billion. Peers: came-pytorch (32 bits), bitsandbytes' AdamW8bit where it is installed, torch's
fused AdamW, and a plain statement of the published CAME-8bit, whose chunks are rows.
Before its time is printed each side steps beside its own reference, and a side that disagrees with it has no time.
Bandwidth is 14 bytes a parameter (8 in bfloat16: read gradient, code and parameter, write code and parameter) over the
time, beside that of a measured copy. On a GPU the share of the copy's bandwidth is also given by the 27 (15) bytes that
the passes of the Triton kernels move.
"""

from collections.abc import Callable, Iterable
from typing import Any

import came_pytorch
import torch
from common import DEVICE, command_line, installed, start, timed, timed_in_turns, write_result
from row_chunks import RowChunkCame
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from kernels.came8bit import Came, Came8bit
from kernels.optimizers import build_optimizer, state_bytes_by_kind
from model.network import NetworkConfig, Sana

LEARNING_RATE = 1e-4
COPY_BYTES = 2**28


def row_chunks(parameters: Iterable[Parameter]) -> Optimizer:
    """The published method."""
    return RowChunkCame(parameters, LEARNING_RATE)


def came_pytorch_step(parameters: Iterable[Parameter]) -> Optimizer:
    """came-pytorch's 32 bits."""
    return came_pytorch.CAME(parameters, lr=LEARNING_RATE)


def named(name: str) -> Callable[[Iterable[Parameter]], Optimizer]:
    """An optimizer of this project by name."""
    return lambda parameters: build_optimizer(name, parameters, LEARNING_RATE, 0.0)


def dynamic(parameters: Iterable[Parameter]) -> Optimizer:
    """CAME-8bit with bitsandbytes' map."""
    return Came8bit(parameters, LEARNING_RATE, map="dynamic")


def plain_came(parameters: Iterable[Parameter]) -> Optimizer:
    """CAME of 32 bits in plain PyTorch, which the others of its family follow."""
    return Came(parameters, LEARNING_RATE, kernels="reference")


SIDES = {
    "came8bit": named("came8bit"),
    "came8bit, dynamic map": dynamic,
    "came": named("came"),
    "published row chunks": row_chunks,
    "came-pytorch": came_pytorch_step,
    "adamw8bit": named("adamw8bit"),
    "adamw": named("adamw"),
}
if not installed("bitsandbytes"):
    del SIDES["adamw8bit"]
# what each side must follow, and how far apart paths may end, of the way that the reference went
REFERENCES = {
    "came8bit": (plain_came, 0.05),
    "came8bit, dynamic map": (plain_came, 0.05),
    "came": (came_pytorch_step, 1e-4),
    "published row chunks": (plain_came, 0.05),
    "came-pytorch": (plain_came, 1e-4),
    "adamw8bit": (lambda parameters: torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0), 0.2),
    "adamw": (lambda parameters: torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0, fused=False), 1e-4),
}
NOTES = {
    "came-pytorch": "another function on 1x1 convolutions, which it does not factor",
    "published row chunks": "coarser: one scale for up to 2048 rows",
}


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
        cross_heads=width // 112,
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


def copy_bandwidth() -> float:
    """Bytes a second of a large copy: read and written."""
    source = torch.ones(COPY_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), rounds=10)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict | list):
        return sum(tensor_bytes(one) for one in (value.values() if isinstance(value, dict) else value))
    return 0


def measure(width: int, depth: int, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """A row for each side: time, bandwidth, state and how it agrees with its reference."""
    optimizers = {side: build(make_network(width, depth, dtype).parameters()) for side, build in SIDES.items()}
    deviations = {side: deviation(side) for side in SIDES}
    agreeing = {side: one for side, one in optimizers.items() if deviations[side] <= REFERENCES[side][1]}
    seconds = timed_in_turns({side: optimizer.step for side, optimizer in agreeing.items()}, rounds)
    count = sum(parameter.numel() for group in optimizers["came"].param_groups for parameter in group["params"])
    least, passes = (14, 27) if dtype == torch.float32 else (8, 15)
    copied = copy_bandwidth()
    rows = []
    for side, optimizer in optimizers.items():
        taken = seconds.get(side)
        state = sum(tensor_bytes(dict(one)) for one in optimizer.state.values()) / count
        row = {"optimizer": side, "seconds": taken, "state_bytes_per_parameter": state, "deviation": deviations[side]}
        row |= {"of_came_pytorch": taken and taken / seconds["came-pytorch"], "of_adamw8bit": None}
        row["of_adamw8bit"] = taken / seconds["adamw8bit"] if taken and "adamw8bit" in seconds else None
        row["note"] = (
            NOTES.get(side, "") if taken else f"disagrees with its reference by {deviations[side]:.3f}: no time"
        )
        row["GB_per_s_of_least_bytes"] = least * count / taken / 1e9 if taken and side.startswith("came8bit") else None
        fused = DEVICE == "cuda" and row["GB_per_s_of_least_bytes"] is not None
        row["of_copy_by_passes"] = passes * count / taken / copied if fused else None
        row["by_kind"] = state_bytes_by_kind(optimizer) if side in ("came8bit", "came8bit, dynamic map") else None
        rows.append(row)
    return [{"parameters": count, "dtype": str(dtype), "copy_GB_per_s": copied / 1e9}, *rows]


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def main() -> None:
    """Print a table, and keep it with hardware and versions."""
    wide, deep = (2240, 2) if DEVICE == "cuda" else (224, 12)
    parser = command_line(__doc__, rounds=20)
    parser.add_argument("--width", type=int, default=wide, help=f"of the network's parameters (default: {wide})")
    parser.add_argument("--depth", type=int, default=deep, help=f"blocks of them (default: {deep})")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: float32)")
    arguments = start(parser)
    torch.manual_seed(0)
    case, *rows = measure(arguments.width, arguments.depth, getattr(torch, arguments.dtype), arguments.rounds)
    print(case)
    columns = ("optimizer", "ms", "of came-pytorch", "of adamw8bit", "GB/s by the least bytes", "of copy by passes")
    print(f"\n| {' | '.join(columns)} | state bytes | note |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        times = [shown(row["seconds"] and 1e3 * row["seconds"], ".1f"), shown(row["of_came_pytorch"], ".2f")]
        times += [shown(row["of_adamw8bit"], ".2f"), shown(row["GB_per_s_of_least_bytes"], ".1f")]
        times.append(shown(row["of_copy_by_passes"], ".2f"))
        print(f"| {row['optimizer']} | {' | '.join(times)} | {row['state_bytes_per_parameter']:.2f} | {row['note']} |")
    name = "optimizer_step" if arguments.dtype == "float32" else f"optimizer_step-{arguments.dtype}"
    print(write_result(name, [case, *rows]))


if __name__ == "__main__":
    main()
