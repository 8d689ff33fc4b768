"""ReLU linear attention with QK norm: the Triton kernels on CUDA, else plain PyTorch.

The folder may import torch, triton and `kernels`.
"""

import torch
from torch import Tensor

from kernels.kernel_choice import Choice, use_triton
from kernels.linear_attention import reference
from kernels.linear_attention.reference import NORM_EPS, NormWeights, split_heads

__all__ = ["NORM_EPS", "NormWeights", "linear_attention", "split_heads"]

# The heads that the kernels take. Wider ones would not fit the shared memory of small GPUs.
HEAD_DIMS = (16, 32)
WIDEST = 16384  # channels; one program holds all channels of a token
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear_attention(
    qkv_BNE: Tensor, norms: NormWeights | None, head_dim: int, eps: float, choice: Choice = "auto"
) -> Tensor:
    """Attention (B, N, D) of queries, keys and values side by side (B, N, 3D); `reference` states the equation.

    `norms` are the weights (D) of the RMSNorm of queries and of keys, which span all heads; None stands for no norm.
    Raises ValueError for shapes that do not fit, and if `choice` is "triton" and the kernels cannot take these tensors.
    """
    check_shapes(qkv_BNE, norms, head_dim)
    if not use_triton(choice, qkv_BNE.device, obstacle(qkv_BNE, head_dim)):
        return reference.linear_attention(qkv_BNE, norms, head_dim, eps)
    from kernels.linear_attention import triton_kernel

    return triton_kernel.linear_attention(qkv_BNE, norms, head_dim, eps)


def check_shapes(qkv_BNE: Tensor, norms: NormWeights | None, head_dim: int) -> None:
    """Raise ValueError unless there are whole heads of queries, keys and values, and a norm weight for each channel."""
    width, rest = divmod(qkv_BNE.shape[2], 3)
    if rest or width % head_dim:
        raise ValueError(f"{qkv_BNE.shape[2]} channels are no queries, keys and values of heads of {head_dim}")
    for weight in norms or ():
        if weight.shape != (width,):
            raise ValueError(f"a norm of {tuple(weight.shape)} does not fit {width} channels")


def obstacle(qkv_BNE: Tensor, head_dim: int) -> str | None:
    """Why the kernels cannot take these tensors; None if they can."""
    if qkv_BNE.dtype not in DTYPES:
        return f"linear attention has no kernel for {qkv_BNE.dtype}"
    if head_dim not in HEAD_DIMS:
        return f"heads of {head_dim} channels are none of {HEAD_DIMS}"
    if qkv_BNE.shape[2] > 3 * WIDEST:
        return f"{qkv_BNE.shape[2] // 3} channels are more than {WIDEST}"
    return None
