"""The first thing to know of a machine: what imports, and whether the network computes on it.

    python benchmarks/first_step.py

One row for each module: whether it imports, and in how many seconds. Then a forward and backward pass of the network
with bfloat16 weights, and one with float32 weights under bfloat16 autocast; each is compared with the same weights in
float32 on plain PyTorch. On a GPU the network has two blocks of the published width on the kernels of Triton.
"""

import importlib
import time
from contextlib import nullcontext
from typing import Any

import torch
from common import DEVICE, Results, command_line, distance, reason_of, start, synchronize
from torch import Tensor

from kernels.kernel_choice import Choice, choose_kernels
from model.network import NetworkConfig, Sana

MODULES = (
    "transformers",
    "accelerate",
    "triton",
    "diffusers",
    "webdataset",
    "tasks.training.training_loop",
    "tasks.generate",
)
CONFIGS = {
    "cuda": NetworkConfig(32, 2240, 2, 32, 20, 2.5, 1, 2304, True, "diffusers"),
    "cpu": NetworkConfig(32, 256, 2, 32, 4, 2.5, 1, 128, True, "diffusers"),
    "tiny": NetworkConfig(4, 32, 1, 16, 2, 2.5, 1, 16, True, "diffusers"),
}
SIDE, TEXT_TOKENS, BATCH = 16, 300, 2
Pass = tuple[Tensor, list[Tensor]]
TOLERANCE = 5e-2  # of the norm, in bfloat16


def imported(module: str) -> dict[str, Any]:
    """Whether a module imports, in a row."""
    started = time.perf_counter()
    try:
        importlib.import_module(module)
        problem = None
    except Exception as error:
        problem = reason_of(error)
    return {"import": module, "problem": problem, "seconds": time.perf_counter() - started}


def one_pass(network: Sana, kernels: Choice, autocast: bool) -> Pass:
    """Output, and the gradients of all parameters, of a fixed batch in the dtype of the weights."""
    choose_kernels(kernels)
    random = torch.Generator().manual_seed(0)
    config, dtype = network.config, next(network.parameters()).dtype
    latents = torch.randn(BATCH, config.in_channels, SIDE, SIDE, generator=random).to(DEVICE, dtype)
    text = torch.randn(BATCH, TEXT_TOKENS, config.caption_channels, generator=random).to(DEVICE, dtype)
    mask = torch.arange(TEXT_TOKENS, device=DEVICE) < torch.tensor([[TEXT_TOKENS], [TEXT_TOKENS // 2]], device=DEVICE)
    network.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16) if autocast else nullcontext():
        out = network(latents, torch.tensor([20.0, 900.0], device=DEVICE), network.encode_text(text, mask))
    out.float().square().mean().backward()
    choose_kernels("auto")
    return out.detach(), [parameter.grad.detach() for parameter in network.parameters()]


def measured(config: NetworkConfig, weights: torch.dtype, autocast: bool) -> dict[str, Any]:
    """A row: how far output and gradients are from those of the same weights in float32, and the first pass's time."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = Sana(config)
    with torch.no_grad():  # new networks end in zeros, behind which nothing would show
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02 if parameter.dim() > 1 else parameter)
    network = network.to(weights)
    about = {"pass": f"{weights} weights{', autocast' if autocast else ''}".removeprefix("torch.")}
    try:
        started = time.perf_counter()
        out, gradients = one_pass(network, "auto", autocast)
        synchronize()
        seconds = time.perf_counter() - started
        exact, exact_gradients = one_pass(network.float(), "reference", False)
    except Exception as error:
        return about | {"problem": reason_of(error)}
    errors = {"error": distance([out], [exact]), "gradient_error": distance(gradients, exact_gradients)}
    off = [f"{name} {error:.1e}" for name, error in errors.items() if not error <= TOLERANCE]
    return about | {"problem": ", ".join(off) or None, "seconds": seconds, **errors}


def main() -> None:
    """Print and keep the rows."""
    arguments = start(command_line(__doc__))
    torch.backends.cudnn.allow_tf32 = False  # of the float32 network that the others are compared with
    results = Results("first_step", arguments.out)
    for module in MODULES:
        results.add(imported(module))
        print(results.rows[-1], flush=True)
    for weights, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        results.add(measured(CONFIGS[arguments.size], weights, autocast))
        print(results.rows[-1], flush=True)
    print(results.path)


if __name__ == "__main__":
    main()
