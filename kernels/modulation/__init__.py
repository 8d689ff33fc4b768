"""AdaLN modulation and the gated residual: the Triton kernels on CUDA, else plain PyTorch.

The folder may import torch, triton and `kernels`.
"""

import torch
from torch import Tensor

from kernels.kernel_choice import Choice, use_triton
from kernels.modulation import reference

__all__ = ["gated_residual", "modulate"]

WIDEST = 16384  # channels; one program holds all channels of a token
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, choice: Choice = "auto") -> Tensor:
    """LN(x) * (1 + scale) + shift (B, N, D), where LN has no scale and shift of its own.

    Raises ValueError if `choice` is "triton" and the kernel cannot take these tensors.
    """
    if not use_triton(choice, x_BND.device, obstacle(x_BND, (shift_B1D, scale_B1D))):
        return reference.modulate(x_BND, shift_B1D, scale_B1D)
    from kernels.modulation import triton_kernel

    return triton_kernel.modulate(x_BND, shift_B1D, scale_B1D)


def gated_residual(x_BND: Tensor, gate_B1D: Tensor, y_BND: Tensor, choice: Choice = "auto") -> Tensor:
    """x + gate * y (B, N, D). Raises ValueError if `choice` is "triton" and the kernel cannot take these tensors."""
    if not use_triton(choice, x_BND.device, obstacle(x_BND, (gate_B1D,), y_BND)):
        return reference.gated_residual(x_BND, gate_B1D, y_BND)
    from kernels.modulation import triton_kernel

    return triton_kernel.gated_residual(x_BND, gate_B1D, y_BND)


def obstacle(x_BND: Tensor, times_B1D: tuple[Tensor, ...], *others_BND: Tensor) -> str | None:
    """Why the kernels cannot take these tensors; None if they can."""
    dtypes = {tensor.dtype for tensor in (x_BND, *times_B1D, *others_BND)}
    if len(dtypes) > 1:
        return f"modulation has no kernel for a mixture of {sorted(map(str, dtypes))}"
    if x_BND.dtype not in DTYPES:
        return f"modulation has no kernel for {x_BND.dtype}"
    batch, _, width = x_BND.shape
    rows = all(tensor.shape == (batch, 1, width) for tensor in times_B1D)
    if not rows or any(other.shape != x_BND.shape for other in others_BND):
        return "modulation's kernel takes x and y of one shape, and one row of shift, scale or gate for each picture"
    if width > WIDEST:
        return f"{width} channels are more than {WIDEST}"
    return None
