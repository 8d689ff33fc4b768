"""Peak memory of a training step by optimizer, with and without the step in the backward pass, on a GPU.

    python benchmarks/training_memory.py [--depth 60] [--batch 1]

The network is SANA-1.5's at 512 pixels: 2240 channels, 60 blocks (4.8B), bfloat16 weights, cached latents and texts, no
average of the weights. Three steps are made, so that optimizer state and its scratch are there; the peak is what torch
allocated. A side that runs out of memory has no figure. Beside it stands what the plan (`tasks/planning`) says of
weights, gradients and state, to which activations come.
AdamW8bit has a row where bitsandbytes is installed. Needs a GPU.
"""

import argparse
import gc
import sys
from typing import Any

import torch
from common import DEVICE, hardware, installed, versions, write_result

from kernels.came8bit.in_backward import StepInBackward
from kernels.optimizers import build_optimizer
from model.network import NetworkConfig, Sana
from tasks.planning.memory import gradient_bytes, optimizer_bytes, weight_bytes

SIDE, TEXT_TOKENS, CAPTION_CHANNELS, STEPS = 16, 300, 2304, 3
SIDES = [("came8bit", True), ("came8bit", False), ("came", False), ("adamw8bit", False), ("adamw", False)]
if not installed("bitsandbytes"):
    SIDES.remove(("adamw8bit", False))


def peak(config: NetworkConfig, name: str, in_backward: bool, batch: int) -> int | None:
    """Bytes allocated at most in a few training steps; None where they do not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return _train(config, name, in_backward, batch)
    except torch.OutOfMemoryError:
        return None


def _train(config: NetworkConfig, name: str, in_backward: bool, batch: int) -> int:
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)  # weights are never there in float32
        network = Sana(config)
        torch.set_default_dtype(torch.float32)
        latents = torch.randn(batch, config.in_channels, SIDE, SIDE, dtype=torch.bfloat16)
        text = torch.randn(batch, TEXT_TOKENS, config.caption_channels, dtype=torch.bfloat16)
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
        timesteps = torch.full((batch,), 500.0)
    optimizer = build_optimizer(name, network.parameters(), 1e-5, 0.0)
    stepping = StepInBackward(optimizer, network) if in_backward else None
    for _ in range(STEPS):
        network(latents, timesteps, network.encode_text(text, mask)).float().square().mean().backward()
        if stepping is not None:
            stepping.finish()
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated()


def main() -> int:
    """Print a row for each side and keep all; returns 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=60)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    if DEVICE == "cpu":
        print("benchmarks/training_memory.py: torch sees no CUDA device: memory is measured on a GPU", file=sys.stderr)
        return 2
    print(hardware(), versions())
    print("| optimizer | step in backward | peak GB | by the plan, without activations |\n|---|---|---|---|")
    config = NetworkConfig(32, 2240, arguments.depth, 32, 20, 2.5, 1, CAPTION_CHANNELS, True, "diffusers")
    rows: list[dict[str, Any]] = []
    for name, in_backward in SIDES:
        found = peak(config, name, in_backward, arguments.batch)
        weights, gradients = weight_bytes(config, "bfloat16"), gradient_bytes(config, "bfloat16", in_backward)
        planned = weights + gradients + optimizer_bytes(name, config)
        rows.append({"optimizer": name, "step_in_backward": in_backward, "peak_bytes": found, "planned_bytes": planned})
        said = f"{found / 1e9:.1f}" if found else "out of memory"
        print(f"| {name} | {in_backward} | {said} | {planned / 1e9:.1f} |", flush=True)
    print(f"\n{write_result('training_memory', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
