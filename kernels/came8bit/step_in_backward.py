"""CAME's step within the backward pass: a parameter moves as soon as its gradient is complete, which is then freed.

So there is never a copy of all gradients: of large matrices one at a time, and of all that is small. The result is that
of the ordinary step. What needs all gradients at once cannot be had with it, and is refused by name.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kernels.came8bit.came_optimizer import Came
from kernels.came8bit.state import Work, is_dtensor

SMALL = 2**17
"""Parameters of at most this many entries keep their gradients to the end, where one call steps them all."""


class NonFiniteGradient(RuntimeError):
    """A gradient was NaN or infinite, and parameters have moved already: go back to the last checkpoint."""

    def __init__(self, parameter: str) -> None:
        super().__init__(
            f"the gradient of {parameter} is not finite, and others have stepped: load the last checkpoint"
        )
        self.parameter = parameter


class StepInBackward:
    """Steps an optimizer's parameters during `backward()`. Instead of `step` and `zero_grad`, call `finish` after it.

    Raises ValueError where `clip_norm` is given (the global norm is known only at the end), `grad_accumulation` is not
    1, `network` is under DDP or FSDP, or the optimizer has parameters that are not the network's. Nothing moves but in
    one `backward()` followed by one `finish()`: a second `backward()` raises RuntimeError.
    """

    def __init__(
        self, optimizer: Came, network: nn.Module, clip_norm: float | None = None, grad_accumulation: int = 1
    ) -> None:
        _refuse(network, clip_norm, grad_accumulation)
        self.optimizer = optimizer
        self.names = {parameter: name for name, parameter in network.named_parameters()}
        groups = enumerate(optimizer.param_groups)
        parameters = [(parameter, index) for index, group in groups for parameter in group["params"]]
        if any(parameter not in self.names for parameter, _ in parameters):
            raise ValueError("step in backward cannot be had with parameters that the network has not")
        # a group by its number: loading a state puts other groups into the optimizer
        self.places = {parameter: (index, place) for place, (parameter, index) in enumerate(parameters)}
        self.works: list[Work] = []  # of small parameters that wait for `finish`
        self.finite: dict[Tensor, Tensor] = {}  # of every parameter that had a gradient since the last `finish`
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for parameter in self.places
            if parameter.requires_grad
        ]

    @torch.no_grad()
    def finish(self) -> None:
        """Step what is left. Raises NonFiniteGradient, which names the first such parameter in the network's order."""
        self.optimizer.update(self.works)
        self.works.clear()
        for group in self.optimizer.param_groups:
            group["steps"] += 1
        finite, self.finite = self.finite, {}
        if finite and not torch.stack(list(finite.values())).all():
            raise NonFiniteGradient(next(name for one, name in self.names.items() if one in finite and not finite[one]))

    def remove(self) -> None:
        """Take the hooks off: `backward()` leaves gradients again."""
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        if parameter in self.finite:
            raise RuntimeError(
                f"{self.names[parameter]} has stepped since the last finish(): no accumulation in backward"
            )
        # not looked at before `finish`: the device need not be waited for
        self.finite[parameter] = parameter.grad.isfinite().all()
        index, place = self.places[parameter]
        work = self.optimizer.work_of(parameter, self.optimizer.param_groups[index], place)
        parameter.grad = None
        if parameter.numel() <= SMALL:
            self.works.append(work)
        else:
            self.optimizer.update([work])


def is_fsdp(module: nn.Module) -> bool:
    """Whether a module is wrapped by FSDP's first form; its import takes a second that only who has one shall wait."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def _refuse(network: nn.Module, clip_norm: float | None, grad_accumulation: int) -> None:
    """Raise ValueError for what the step in backward cannot be had with."""
    modules = list(network.modules())
    refused = {
        "clipping by the global norm": clip_norm is not None,
        "gradient accumulation": grad_accumulation != 1,
        "DDP": any(isinstance(module, DistributedDataParallel) for module in modules),
        "FSDP": any(is_fsdp(module) for module in modules) or any(map(is_dtensor, network.parameters())),
    }
    for name, found in refused.items():
        if found:
            raise ValueError(f"step in backward cannot be had with {name}: turn one of them off")
