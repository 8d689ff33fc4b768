"""The flag of a loss or a gradient that is not finite. It stays on the device, where it keeps later updates from being
made.

Reading a number from a GPU makes the host wait until the GPU has done all its work. The flag is therefore read with the
losses (`tasks.training.unread_steps`), and until then the optimizer skips its steps by the flag. It is torch's own
convention: `torch.amp.GradScaler` hands `found_inf` to the optimizers that know it.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from kernels.optimizers import takes_found_inf


class FoundInf:
    """`flag` is 1 (float32, no dimensions) from the first number on that is not finite, and 0 before.

    On the CPU the host looks at the flag before each update, since no work is waited for there. On another device the
    optimizer looks at it, if it can (`kernels.optimizers.takes_found_inf`). Else the update is made, in memory alone:
    no state is saved before the flag is read. `skips` says whether the update is skipped.
    """

    def __init__(self, optimizer: Optimizer, device: str, sharded: bool) -> None:
        """Hand the flag to the optimizer where it is the optimizer that looks at it."""
        self.flag = torch.zeros((), device=device)
        self._on_host = self.flag.device.type == "cpu"
        by_optimizer = not self._on_host and takes_found_inf(optimizer, self.flag.device, sharded)
        if by_optimizer:
            optimizer.found_inf = self.flag  # type: ignore[attr-defined]
        self.skips = self._on_host or by_optimizer

    def note(self, finite: Tensor) -> None:
        """Set the flag unless `finite`, a bool without dimensions, is true."""
        self.flag.copy_(torch.maximum(self.flag, (~finite).to(self.flag.dtype)))

    def host_skips(self) -> bool:
        """Whether the caller must leave out the update; false wherever it is not the host that looks at the flag."""
        return self._on_host and bool(self.flag.numpy())


def gradient_of(loss: Tensor) -> Tensor:
    """The gradient with which the backward pass of a loss begins: 1, or NaN if the loss is not finite.

    NaN reaches the gradients of all ranks, so that all of them find the norm not finite, though the loss may be so on
    one rank alone.
    """
    loss = loss.detach()
    return torch.where(loss.isfinite(), torch.ones_like(loss), torch.full_like(loss, torch.nan))
