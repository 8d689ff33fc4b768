"""The inside of the Mix-FFN in plain PyTorch (SANA section 2.2, GLUMBConv): SiLU, depth-wise 3x3 convolution, GLU.

    y = DWConv3x3(SiLU(x)) + b,      out = y[:I] * SiLU(y[I:])

Tokens stay channels-last throughout: the convolution reads them as a strided image.

Shapes: B images of N = H * W tokens, 2I channels inside, of which the first I are values and the last I are gates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.float16 import narrow


def mix_feed_forward(x_BNC: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, I) from tokens (B, N, 2I) on a grid (H, W), with depth-wise weights (2I, 1, 3, 3) and bias (2I).

    Weights of another dtype are cast to the dtype of the tokens. Tokens in float16 are worked on in float32, since the
    convolution leaves float16's range. Autocast changes nothing here.
    """
    if x_BNC.dtype == torch.float16:
        return narrow(mix_feed_forward(x_BNC.float(), weight, bias, size), torch.float16)
    with torch.autocast(x_BNC.device.type, enabled=False):
        # A view: the image is stored channels-last, and no token is moved.
        image_BCHW = F.silu(x_BNC).unflatten(1, size).permute(0, 3, 1, 2)
        mixed_BCHW = F.conv2d(image_BCHW, weight.to(x_BNC.dtype), bias.to(x_BNC.dtype), padding=1, groups=len(weight))
        value, gate = mixed_BCHW.permute(0, 2, 3, 1).flatten(1, 2).chunk(2, dim=-1)
        return value * F.silu(gate)
