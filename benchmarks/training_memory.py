"""Peak memory of a training step of the 4.8B by optimizer, and of its evaluation, within the memory of a 24 GB GPU.

    python benchmarks/training_memory.py [--depth 60] [--batch 1]

The network is SANA-1.5's at 512 pixels: 2240 channels, 60 blocks (4.8B), bfloat16 weights, cached latents and texts, no
average of the weights. First, with torch held to 24 GB: three steps of 8-bit CAME within the backward pass, and the
held-out loss of stage `train` (`tasks.training.heldout_loss`). Then, with all the memory that there is, three steps of
each optimizer. The peak is what torch allocated; what runs out of memory has no figure, and its row says so. Beside it
stands what the plan (`tasks/planning`) says of weights, gradients and state, to which activations come. Without a GPU
the same code runs, and no memory is measured.
"""

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import DEVICE, PROJECT, Results, command_line, reason_of, start
from synthetic import Encodings, write_encodings
from torch.optim import Optimizer

from kernels.came8bit.step_in_backward import StepInBackward
from kernels.optimizers import build_optimizer
from model.network import NetworkConfig, Sana
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.planning.training_memory import gradient_bytes, optimizer_bytes, weight_bytes
from tasks.training.heldout_loss import heldout_loss

LIMIT = 24e9  # bytes: a 24 GiB card less what CUDA itself takes of it
STEPS = 3
SIDES = [("came8bit", True), ("came8bit", False), ("came", False), ("adamw8bit", False), ("adamw", False)]
SIZES = {
    "cuda": (
        NetworkConfig(32, 2240, 60, 32, 20, 2.5, 1, 2304, True, "diffusers"),
        Encodings(32, 16, 300, 2304, 1, 128),
    ),
    "cpu": (NetworkConfig(32, 256, 8, 32, 4, 2.5, 1, 128, True, "diffusers"), Encodings(32, 4, 12, 128, 1, 16)),
    "tiny": (NetworkConfig(4, 32, 1, 16, 2, 2.5, 1, 16, True, "diffusers"), Encodings(4, 3, 5, 16, 1, 2)),
}


def make_network(config: NetworkConfig) -> Sana:
    """Random weights that are never there in float32."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return Sana(config)
    finally:
        torch.set_default_dtype(torch.float32)


def train(network: Sana, sizes: Encodings, name: str, in_backward: bool, batch: int) -> Optimizer:
    """A few steps, so that optimizer state and its scratch are there; returns the optimizer, which holds the state."""
    config = network.config
    with torch.device(DEVICE):
        latents = torch.randn(batch, config.in_channels, sizes.side, sizes.side, dtype=torch.bfloat16)
        text = torch.randn(batch, sizes.text_tokens, config.caption_channels, dtype=torch.bfloat16)
        mask = torch.ones(batch, sizes.text_tokens, dtype=torch.bool)
        timesteps = torch.full((batch,), 500.0)
    optimizer = build_optimizer(name, network.parameters(), 1e-5, 0.0)
    stepping = StepInBackward(optimizer, network) if in_backward else None
    for _ in range(STEPS):
        network(latents, timesteps, network.embed_text(text, mask)).float().square().mean().backward()
        if stepping is not None:
            stepping.finish()
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return optimizer


def train_new(config: NetworkConfig, sizes: Encodings, name: str, in_backward: bool, batch: int) -> None:
    """The same steps of a new network, of which nothing stays."""
    train(make_network(config), sizes, name, in_backward, batch)


def peak_of(run: Callable[[], object]) -> dict[str, Any]:
    """The bytes that were allocated at most while `run` ran, or why it did not end."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except Exception as error:
        out = isinstance(error, torch.OutOfMemoryError)
        return {"peak_bytes": None, "problem": "out of memory" if out else reason_of(error)}
    if DEVICE == "cpu":
        return {"peak_bytes": None, "problem": "not measured: no CUDA device"}
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "problem": None}


def within_limit(config: NetworkConfig, sizes: Encodings, batch: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Steps and evaluation under the limit, as stage `train` has both: evaluated beside the optimizer's state."""
    if DEVICE == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total))
    about = {"optimizer": "came8bit", "step_in_backward": True, "limit_bytes": LIMIT}
    networks: list[Sana] = []
    optimizers: list[Optimizer] = []

    def step() -> None:
        networks.append(make_network(config))
        optimizers.append(train(networks[0], sizes, "came8bit", True, batch))

    keep({"what": "step", **about, **peak_of(step), **planned(config, "came8bit", True)})

    def evaluate() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_encodings(Path(folder) / "encoded", sizes)
            dataset = EncodedDataset(Path(folder) / "encoded", "heldout")
            diffusion = load_params(PROJECT / PARAMS_FILE).diffusion
            heldout_loss(networks[0], dataset, diffusion, 0, DEVICE, "bfloat16")

    if optimizers:
        keep({"what": "evaluation", **about, **peak_of(evaluate)})
    else:
        keep({"what": "evaluation", **about, "peak_bytes": None, "problem": "not tried: the step did not end"})
    if DEVICE == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def planned(config: NetworkConfig, name: str, in_backward: bool) -> dict[str, int]:
    """What the plan counts, without activations."""
    weights, gradients = weight_bytes(config, "bfloat16"), gradient_bytes(config, "bfloat16", in_backward)
    return {"planned_bytes": weights + gradients + optimizer_bytes(name, config)}


def line_of(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    limit = f"{row['limit_bytes'] / 1e9:.0f} GB" if row["limit_bytes"] else "none"
    said = row["problem"] or f"{row['peak_bytes'] / 1e9:.1f}"
    plan = f"{row['planned_bytes'] / 1e9:.1f}" if "planned_bytes" in row else ""
    return f"| {row['what']} | {row['optimizer']} | {row['step_in_backward']} | {limit} | {said} | {plan} |"


def main() -> None:
    """Print a row for each run and keep all."""
    parser = command_line(__doc__)
    parser.add_argument("--depth", type=int, help="blocks (default: 60 on a GPU)")
    parser.add_argument("--batch", type=int, default=1, help="samples in a step (default: 1)")
    arguments = start(parser)
    config, sizes = SIZES[arguments.size]
    if arguments.depth is not None:
        config = NetworkConfig(**{**vars(config), "depth": arguments.depth})
    results = Results("training_memory", arguments.out)
    print("| what | optimizer | step in backward | limit | peak GB | by the plan, without activations |")
    print("|---|---|---|---|---|---|")

    def keep(row: dict[str, Any]) -> None:
        results.add(row)
        print(line_of(row), flush=True)

    within_limit(config, sizes, arguments.batch, keep)
    for name, in_backward in SIDES:
        found = peak_of(partial(train_new, config, sizes, name, in_backward, arguments.batch))
        about = {"what": "step", "optimizer": name, "step_in_backward": in_backward, "limit_bytes": None}
        keep({**about, **found, **planned(config, name, in_backward)})
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
