"""Sets how a stage's process computes, once, before its first tensor: device, threads, determinism and kernels."""

import os

from kernels.kernel_choice import choose_kernels, chosen_kernels, use_triton
from tasks.params.experiment_params import Params
from tasks.system.errors import UserError


def configure_torch(params: Params, threads: int) -> str:
    """Set threads, determinism and kernels; returns the device's name, `cpu` or `cuda`.

    Raises UserError if this machine has not the device that params ask for, or cannot run their kernels.
    """
    import torch

    torch.set_num_threads(threads)
    device = choose_device(params.compute.device, "params.yaml: compute.device")
    # cuBLAS repeats its results to the bit only with such a workspace; it reads the variable when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        use_triton(params.compute.kernels, torch.device(device))
    except ValueError as error:
        raise UserError(f"params.yaml: compute.{error}") from None
    choose_kernels(params.compute.kernels)
    # the same as use_deterministic_algorithms, which would first import torch's compiler for a second; on CUDA it only
    # warns, since some CUDA kernels have no deterministic form
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    # that mode also fills every new tensor with NaN, to find reads of unwritten memory; it costs a write of each tensor
    torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def choose_device(wanted: str, where: str) -> str:
    """The device, `cuda` or `cpu`, for the wish auto, cpu or cuda.

    Raises UserError if CUDA is wanted and there is none; `where` says where the wish stands.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(f"{where} is cuda but torch sees no CUDA device: use auto or cpu")
    return "cuda" if available and wanted != "cpu" else "cpu"


def kernels_in_use(device: str) -> str:
    """The kernels that networks run on in this process: `triton` or `reference`."""
    import torch

    return "triton" if use_triton(chosen_kernels(), torch.device(device)) else "reference"
