"""Which implementation of an operation runs: its Triton kernel or its plain PyTorch reference."""

import importlib.util
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Choice = Literal["auto", "triton", "reference"]
"""`auto` takes the Triton kernel on CUDA devices where Triton is installed, and the reference elsewhere."""

INSTALLED = importlib.util.find_spec("triton") is not None
# read once, as Triton itself reads it when a kernel is decorated
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


_chosen: Choice = "auto"


def choose_kernels(choice: Choice) -> None:
    """Set what this process's networks run on, as torch's own backend flags do; before it they run on `auto`."""
    global _chosen
    _chosen = choice


def chosen_kernels() -> Choice:
    """What this process's networks run on."""
    return _chosen


def use_triton(choice: Choice, device: "torch.device", obstacle: str | None = None) -> bool:
    """Whether the Triton kernel serves tensors on `device`; `obstacle` is what the kernel cannot do about them, if any.

    Raises ValueError if Triton was asked for and cannot.
    """
    if choice == "reference":
        return False
    able = INSTALLED and (device.type == "cuda" or (INTERPRETED and choice == "triton"))
    if choice == "triton" and not able:
        raise ValueError(f"kernels: triton was asked for, but cannot run on {device} here: take auto or reference")
    if choice == "triton" and obstacle is not None:
        raise ValueError(f"kernels: triton was asked for, but {obstacle}: take auto or reference")
    return able and obstacle is None
