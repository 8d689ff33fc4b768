"""Looks for numbers that are not finite, in weights when a model is loaded and in samples when they are read.

One NaN among billions of weights makes every picture of a model noise. Pictures have 8 bits, so no later step would
find it: the model would be scored, and score badly.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def check_finite_weights(weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise ValueError that names the file or folder `where` and the first tensor with a NaN or an infinity.

    Each tensor is read once, where it is, and none is copied. The host waits for the device once, at the end. Tensors
    of whole numbers, such as quantised weights, are left out.
    """
    names = [name for name, tensor in weights.items() if tensor.is_floating_point()]
    if not names:
        return
    finite = torch.stack([is_finite(weights[name]) for name in names]).tolist()
    broken = [name for name, good in zip(names, finite, strict=True) if not good]
    if broken:
        others = f", and {len(broken) - 1} tensors more do" if len(broken) > 1 else ""
        raise ValueError(
            f"{where}: {broken[0]} holds numbers that are not finite{others}: make this model again, or copy it again"
        )


@torch.no_grad()
def is_finite(tensor: Tensor) -> Tensor:
    """Whether all numbers of a tensor are finite: a bool without dimensions, on the tensor's device.

    The smallest and the largest number tell it, since a NaN makes both of them NaN. `isfinite` would write several
    tensors of the same shape.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    # PyTorch has no smallest number of 8-bit floats.
    return torch.stack(torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())).isfinite().all()
