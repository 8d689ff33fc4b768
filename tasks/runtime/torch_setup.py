"""How a stage's process computes: device, threads, determinism and kernels, set once before the first tensor."""

import os

from kernels.choice import choose_kernels, chosen_kernels, use_triton
from tasks.params.experiment import Params
from tasks.system.errors import UserError


def configure_torch(params: Params, threads: int) -> str:
    """Pin threads, determinism and kernels before the first tensor; returns the device name.

    Raises UserError for a device or kernels that are not there.
    """
    import torch

    torch.set_num_threads(threads)
    device = choose_device(params.compute.device, "params.yaml: compute.device")
    # cuBLAS repeats its results to the bit only with such a workspace, and reads this when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        use_triton(params.compute.kernels, torch.device(device))
    except ValueError as error:
        raise UserError(f"params.yaml: compute.{error}") from None
    choose_kernels(params.compute.kernels)
    # as use_deterministic_algorithms, which would import the compiler for a second; some CUDA kernels have no such form
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    # that mode would also fill every new tensor with NaN, which finds bugs in tests and costs a write for each of them
    torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def choose_device(wanted: str, where: str) -> str:
    """`cuda` or `cpu` for auto, cpu or cuda. Raises UserError, with `where` it was asked for, if there is no CUDA."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(f"{where} is cuda but torch sees no CUDA device: use auto or cpu")
    return "cuda" if available and wanted != "cpu" else "cpu"


def kernels_in_use(device: str) -> str:
    """What the network runs on here: `triton` or `reference`."""
    import torch

    return "triton" if use_triton(chosen_kernels(), torch.device(device)) else "reference"
