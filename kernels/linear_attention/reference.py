"""ReLU linear attention with QK norm in plain PyTorch (SANA section 2.2, SANA-1.5 section 3.1 for the norm).

    out_i = sum_j relu(q_i).relu(k_j) v_j / (sum_j relu(q_i).relu(k_j) + eps)

Queries and keys are normed over the full width D, before it is split into heads. Sums over tokens are taken in float32,
since they leave float16's range. The result does not leave it: it is a mean of values with weights that are not
negative.

Shapes: B batch, N tokens, D = h * d channels: h heads of d.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.float16 import narrow

NORM_EPS = 1e-5  # added to the mean square in the norm of queries and keys

NormWeights = tuple[Tensor, Tensor]
"""Scales (D) of the RMSNorm of queries and of keys."""


def linear_attention(qkv_BNE: Tensor, norms: NormWeights | None, head_dim: int, eps: float) -> Tensor:
    """Attention (B, N, D), in the dtype of `qkv_BNE`, which is (B, N, 3D): queries, keys and values side by side.

    Without `norms` queries and keys are taken as they are. Autocast changes nothing here.
    """
    with torch.autocast(qkv_BNE.device.type, enabled=False):
        q, k, v = qkv_BNE.chunk(3, dim=-1)
        if norms is not None:
            q, k = rms_norm(q, norms[0]), rms_norm(k, norms[1])
        q, k = F.relu(split_heads(q, head_dim)), F.relu(split_heads(k, head_dim))
        out_BhNd = attend(q, k, split_heads(v, head_dim), eps)
        return narrow(out_BhNd.transpose(1, 2).flatten(2), qkv_BNE.dtype)


def rms_norm(x_BND: Tensor, weight_D: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in float32 and cast back to the dtype of `x_BND`."""
    return F.rms_norm(x_BND.float(), weight_D.shape, weight_D.float(), NORM_EPS).to(x_BND.dtype)


def split_heads(x_BND: Tensor, head_dim: int) -> Tensor:
    """Tokens (B, N, D) as heads (B, h, N, d)."""
    return x_BND.unflatten(2, (-1, head_dim)).transpose(1, 2)


def attend(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, eps: float) -> Tensor:
    """Attention (B, h, N, d), in float32, of queries and keys that are not negative."""
    q, k, v = q_BhNd.float(), k_BhNd.float(), v_BhNd.float()
    # The keys meet the values first: d x d numbers for each head, where weights between tokens would be N x N.
    numerator = q @ (k.transpose(-1, -2) @ v)
    denominator = q @ k.sum(dim=-2).unsqueeze(-1)
    return numerator / (denominator + eps)
