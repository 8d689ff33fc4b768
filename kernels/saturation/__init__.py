"""Results beyond float16's range: stored as its largest number, and counted, so that none passes unseen.

SANA's published weights were trained under such a limit, and users meet activations beyond it. Infinities and NaN are
no saturation: they stay what they are. A gradient passes through a saturated result as if it had fitted; gradients
themselves are never limited, as loss scaling looks for their infinities.
"""

import torch
from torch import Tensor

LARGEST = 65504.0  # of float16
OVERFLOW = 65520.0  # the least number that float16 rounds to infinity

_counters: dict[torch.device, Tensor] = {}


def counter(device: torch.device) -> Tensor:
    """The running count of a device: int64 (1,), to be added to by whatever saturates there."""
    if device not in _counters:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be added to outside it
            _counters[device] = torch.zeros(1, dtype=torch.int64, device=device)
    return _counters[device]


def saturated_values() -> int:
    """How many float16 results have saturated in this process, on all its devices. Waits for them."""
    return sum(int(count.item()) for count in _counters.values())


def narrow(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """A fresh float32 result in `dtype`. On the way to float16 `wide` itself is limited, in place, and counted."""
    if dtype == torch.float16:
        with torch.no_grad():
            beyond = (wide.abs() >= OVERFLOW) & wide.isfinite()
            wide.copy_(torch.where(beyond, wide.sign() * LARGEST, wide))
            counter(wide.device).add_(beyond.sum())
    return wide.to(dtype)
