"""Which implementation of an operation runs: its Triton kernel or its plain PyTorch reference."""

import importlib.util
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Choice = Literal["auto", "triton", "reference"]
"""`auto` takes the Triton kernel on CUDA devices where Triton is installed, and the reference elsewhere."""

INSTALLED = importlib.util.find_spec("triton") is not None
# This is read once, because Triton reads it when a kernel is decorated and never again.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


_chosen: Choice = "auto"


def choose_kernels(choice: Choice) -> None:
    """Set what the networks of this process run on; until it is called they run on `auto`."""
    # One setting for the process, like the backend flags of torch: it is no property of a network or a checkpoint.
    global _chosen
    _chosen = choice


def chosen_kernels() -> Choice:
    """What the networks of this process run on."""
    return _chosen


def use_triton(choice: Choice, device: "torch.device", obstacle: str | None = None) -> bool:
    """Whether the Triton kernel is to serve tensors on `device`.

    `obstacle` says why the kernel cannot take these tensors; it is None if the kernel can. Raises ValueError if
    `choice` is "triton" and the kernel cannot run here or cannot take the tensors.
    """
    if choice == "reference":
        return False
    # `auto` never takes the interpreter, which is far slower than the reference.
    able = INSTALLED and (device.type == "cuda" or (INTERPRETED and choice == "triton"))
    if choice == "triton" and not able:
        raise ValueError(f"kernels: triton was asked for, but cannot run on {device} here: take auto or reference")
    if choice == "triton" and obstacle is not None:
        raise ValueError(f"kernels: triton was asked for, but {obstacle}: take auto or reference")
    return able and obstacle is None
