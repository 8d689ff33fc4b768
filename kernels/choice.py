"""Which implementation of an operation runs: its Triton kernel or its plain PyTorch reference."""

import importlib.util
import os
from typing import Literal

import torch

Choice = Literal["auto", "triton", "reference"]
"""`auto` takes the Triton kernel on CUDA devices where Triton is installed, and the reference elsewhere."""

INSTALLED = importlib.util.find_spec("triton") is not None
# read once, as Triton itself reads it when a kernel is decorated
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(choice: Choice, device: torch.device) -> bool:
    """Whether the Triton kernel serves tensors on `device`. Raises ValueError if it was asked for and cannot."""
    if choice == "reference":
        return False
    able = INSTALLED and (device.type == "cuda" or (INTERPRETED and choice == "triton"))
    if choice == "triton" and not able:
        raise ValueError(f"kernels: triton was asked for, but cannot run on {device} here: take auto or reference")
    return able
