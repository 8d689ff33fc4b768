"""The inside of the Mix-FFN: the Triton kernels on CUDA, else plain PyTorch.

The folder may import torch, triton and `kernels`.
"""

import torch
from torch import Tensor

from kernels.kernel_choice import Choice, use_triton
from kernels.mix_feed_forward import reference

__all__ = ["mix_feed_forward"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mix_feed_forward(
    x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int], choice: Choice = "auto"
) -> Tensor:
    """SiLU, depth-wise 3x3 convolution with bias, then value * SiLU(gate): tokens (B, H*W, 2I) as (B, H*W, I).

    `weight` (2I, 1, 3, 3) and `bias` (2I) belong to the convolution and may have any floating dtype. The result has the
    dtype of `x_BNC`. The Triton kernels take float32, bfloat16 and float16, sum in float32 and have no second
    derivative; under `auto` another dtype goes to the reference. Raises ValueError for shapes that do not fit, and if
    `choice` is "triton" and the kernels cannot run.
    """
    check_shapes(x_BNC, weight, bias, size)
    obstacle = None if x_BNC.dtype in DTYPES else f"the Mix-FFN has no kernel for {x_BNC.dtype}"
    if not use_triton(choice, x_BNC.device, obstacle):
        return reference.mix_feed_forward(x_BNC, weight, bias, size)
    from kernels.mix_feed_forward import triton_kernel

    return triton_kernel.mix_feed_forward(x_BNC, weight, bias, size)


def check_shapes(x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError unless the grid has a cell for each token and the convolution fits the channels."""
    channels = x_BNC.shape[2]
    if x_BNC.shape[1] != size[0] * size[1]:
        raise ValueError(f"{x_BNC.shape[1]} tokens are no grid of {size[0]} x {size[1]}")
    if channels % 2 or weight.shape != (channels, 1, 3, 3) or bias.shape != (channels,):
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"a depth-wise convolution of {shapes} does not fit {channels} channels")
