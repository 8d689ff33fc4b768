"""AdaLN modulation and the gated residual: the Triton kernels on CUDA, else plain PyTorch.

Two dtypes may meet here. Under autocast the residual stream and the rows of the time are float32, while the results of
matrix products, which a branch adds to the stream, are bfloat16 or float16. `modulate` then reads the stream and
returns the operands of a matrix product; `gated_residual` adds a product's result to the stream.

The folder may import torch, triton and `kernels`.
"""

import torch
from torch import Tensor

from kernels.kernel_choice import Choice, use_triton
from kernels.modulation import reference

__all__ = ["gated_residual", "modulate"]

WIDEST = 16384  # channels; one program holds all channels of a token
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def modulate(
    x_BND: Tensor,
    shift_B1D: Tensor,
    scale_B1D: Tensor,
    choice: Choice = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """LN(x) * (1 + scale) + shift (B, N, D), where LN has no scale and shift of its own.

    The result has the dtype `out_dtype`, or that of x if it is None. It is rounded once. Raises ValueError if `choice`
    is "triton" and the kernel cannot take these tensors.
    """
    out_dtype = out_dtype or x_BND.dtype
    if not use_triton(choice, x_BND.device, obstacle(x_BND, (shift_B1D, scale_B1D), out_dtype)):
        return reference.modulate(x_BND, shift_B1D, scale_B1D, out_dtype)
    from kernels.modulation import triton_kernel

    return triton_kernel.modulate(x_BND, shift_B1D, scale_B1D, out_dtype)


def gated_residual(x_BND: Tensor, gate_B1D: Tensor, y_BND: Tensor, choice: Choice = "auto") -> Tensor:
    """x + gate * y (B, N, D), in the dtype of x. To a float32 x, y may be bfloat16 or float16.

    Raises ValueError if `choice` is "triton" and the kernel cannot take these tensors.
    """
    if not use_triton(choice, x_BND.device, obstacle(x_BND, (gate_B1D,), y_BND.dtype, y_BND)):
        return reference.gated_residual(x_BND, gate_B1D, y_BND)
    from kernels.modulation import triton_kernel

    return triton_kernel.gated_residual(x_BND, gate_B1D, y_BND)


def obstacle(
    x_BND: Tensor, times_B1D: tuple[Tensor, ...], branch_dtype: torch.dtype, *others_BND: Tensor
) -> str | None:
    """Why the kernels cannot take these tensors; None if they can.

    `branch_dtype` is the dtype of what enters or leaves the branch: of `modulate`'s result, or of `gated_residual`'s y.
    """
    dtypes = {tensor.dtype for tensor in (x_BND, *times_B1D)}
    # A narrow stream beside wide branches would be rounded at every block, which is what a wide stream avoids.
    if len(dtypes) > 1 or (x_BND.dtype != torch.float32 and branch_dtype != x_BND.dtype):
        return f"modulation has no kernel for a mixture of {sorted(map(str, dtypes | {branch_dtype}))}"
    for dtype in (x_BND.dtype, branch_dtype):
        if dtype not in DTYPES:
            return f"modulation has no kernel for {dtype}"
    batch, _, width = x_BND.shape
    rows = all(tensor.shape == (batch, 1, width) for tensor in times_B1D)
    if not rows or any(other.shape != x_BND.shape for other in others_BND):
        return "modulation's kernel takes x and y of one shape, and one row of shift, scale or gate for each picture"
    if width > WIDEST:
        return f"{width} channels are more than {WIDEST}"
    return None
