"""How the time acts on the tokens of a block, in plain PyTorch (AdaLN-single: SANA section 2.2).

    modulate:         LN(x) * (1 + scale) + shift,   where LN has no scale and shift of its own
    gated residual:   x + gate * y

Shapes: B batch, N tokens, D channels. Scale, shift and gate are (B, 1, D): one row for all tokens of a picture.

The stream x, scale, shift and gate have one dtype. Beside a float32 stream, the modulated values and y may be narrower.
For the backward pass plain PyTorch then keeps, of each modulated norm, x and the normed values in float32 and the
modulated values in the narrow dtype: 10 N D bytes, where a bfloat16 stream would take 6 N D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.float16 import narrow

LAYER_NORM_EPS = 1e-6


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, out_dtype: torch.dtype) -> Tensor:
    """LayerNorm without a scale and shift of its own, then those of the time. Autocast changes nothing here."""
    if x_BND.dtype == torch.float16:
        return modulate(x_BND.float(), shift_B1D.float(), scale_B1D.float(), out_dtype)
    with torch.autocast(x_BND.device.type, enabled=False):
        normed = F.layer_norm(x_BND, (x_BND.shape[-1],), eps=LAYER_NORM_EPS)
        return narrow(torch.addcmul(shift_B1D, normed, 1 + scale_B1D), out_dtype)


def gated_residual(x_BND: Tensor, gate_B1D: Tensor, y_BND: Tensor) -> Tensor:
    """The residual stream `x_BND` plus the gated `y_BND`, which is widened to the stream's dtype."""
    if x_BND.dtype == torch.float16:
        return narrow(gated_residual(x_BND.float(), gate_B1D.float(), y_BND.float()), torch.float16)
    return x_BND + gate_B1D * y_BND
