"""The limit of float16 results: a finite number beyond float16's range is stored as float16's largest, of its sign.

SANA's published weights were trained under such a limit, and users meet activations beyond it. Infinities and NaN stay
what they are, so that an error is not hidden. A gradient passes through a limited result as if the result had fitted.
Gradients themselves are never limited, since loss scaling looks for their infinities.
"""

import torch
from torch import Tensor

LARGEST = 65504.0  # of float16


def narrow(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 result `wide` in `dtype`, limited on the way to float16.

    `wide` must be fresh, that is read by nobody else: it is limited in place.
    """
    if dtype == torch.float16:
        # Autograd does not see the limit. `clamp` alone would stop the gradient, and would make infinities finite.
        with torch.no_grad():
            wide.copy_(torch.where(wide.isinf(), wide, wide.clamp(-LARGEST, LARGEST)))
    return wide.to(dtype)
