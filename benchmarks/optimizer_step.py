"""Time of one optimizer step on the grown network of params.yaml's size, against torch's fused AdamW in the same run.

    python benchmarks/optimizer_step.py [--rounds 20]

The optimizers take turns, and the least of their times counts. On the CPU it is the time of one thread that worked, not
of the clock on the wall, so that other programs on the machine count for little.
"""

import argparse
import platform
import time
from importlib.metadata import version

import came_pytorch
import torch
from torch.optim import Optimizer

from kernels.optimizers import OPTIMIZERS, build_optimizer, state_bytes_per_parameter
from model.network import NetworkConfig, Sana

PEER = "adamw"
LEARNING_RATE = 1e-4


def make_network(device: str) -> Sana:
    """The embedded default's network of 12 blocks, with gradients."""
    config = NetworkConfig(
        in_channels=12,
        hidden_size=128,
        depth=12,
        linear_head_dim=32,
        cross_heads=4,
        mlp_ratio=2.5,
        patch_size=1,
        caption_channels=128,
        qk_norm=True,
        numerics="diffusers",
    )
    network = Sana(config).to(device)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return network


def build_all(device: str) -> dict[str, Optimizer]:
    """Every optimizer of this project, and came-pytorch's, each over a network of its own."""
    built = {name: build_optimizer(name, make_network(device).parameters(), LEARNING_RATE, 0.0) for name in OPTIMIZERS}
    return built | {"came-pytorch": came_pytorch.CAME(make_network(device).parameters(), lr=LEARNING_RATE)}


def step_seconds(optimizer: Optimizer, device: str) -> float:
    """Time of one step: of the thread on the CPU, on the wall for a GPU."""
    if device == "cpu":
        started = time.thread_time()
        optimizer.step()
        return time.thread_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    optimizer.step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def hardware(device: str) -> str:
    """The machine and versions, in one line."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "bitsandbytes", "came-pytorch"))
    return f"{name}, 1 CPU thread, Python {platform.python_version()}, {packages}"


def main() -> None:
    """Print a table of step time and state size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    optimizers = build_all(device)
    for optimizer in optimizers.values():
        step_seconds(optimizer, device)  # makes the state
    times = {name: float("inf") for name in optimizers}
    for _ in range(arguments.rounds):
        for name, optimizer in optimizers.items():
            step_seconds(optimizer, device)  # brings its state back into the caches
            times[name] = min(times[name], step_seconds(optimizer, device))
    print(hardware(device))
    print(f"{sum(parameter.numel() for parameter in make_network(device).parameters()):,} parameters\n")
    print(f"| optimizer | ms per step | of {PEER} | state bytes per parameter |\n|---|---|---|---|")
    for name, seconds in times.items():
        size = state_bytes_per_parameter(optimizers[name])
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / times[PEER]:.1f} | {size:.2f} |")


if __name__ == "__main__":
    main()
