"""CAME's step during the backward pass: a parameter steps as soon as its gradient is complete, which is then freed.

So the gradients never exist all at once: of large parameters one gradient at a time, beside the gradients of all small
ones. The result is the result of the ordinary step. Features that need all gradients at once are refused by name.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kernels.came8bit.came_optimizer import Came
from kernels.came8bit.state import Work, is_dtensor

SMALL = 2**17
"""Parameters of at most so many entries keep their gradients to the end, where one call steps them all."""


class NonFiniteGradient(RuntimeError):
    """A gradient was NaN or infinite when parameters had moved already: the caller must load the last checkpoint."""

    def __init__(self, parameter: str) -> None:
        """`parameter` is the name whose gradient is not finite."""
        super().__init__(
            f"the gradient of {parameter} is not finite, and others have stepped: load the last checkpoint"
        )
        self.parameter = parameter


class StepInBackward:
    """Steps an optimizer's parameters during `backward()`; call `finish` after it, and neither `step` nor `zero_grad`.

    One `backward()` is followed by one `finish()`: a second `backward()` before it raises RuntimeError.
    """

    def __init__(
        self, optimizer: Came, network: nn.Module, clip_norm: float | None = None, grad_accumulation: int = 1
    ) -> None:
        """Put a hook on each parameter that is trained.

        Raises ValueError if `clip_norm` is given (the global norm is known only at the end), if `grad_accumulation` is
        not 1, if `network` is under DDP or FSDP, or if the optimizer has parameters that the network does not have.
        """
        _refuse(network, clip_norm, grad_accumulation)
        self.optimizer = optimizer
        self.names = {parameter: name for name, parameter in network.named_parameters()}
        groups = enumerate(optimizer.param_groups)
        parameters = [(parameter, index) for index, group in groups for parameter in group["params"]]
        if any(parameter not in self.names for parameter, _ in parameters):
            raise ValueError("step in backward cannot be had with parameters that the network has not")
        # Groups are kept by number, since loading a state replaces the optimizer's group objects.
        self.places = {parameter: (index, place) for place, (parameter, index) in enumerate(parameters)}
        self.works: list[Work] = []  # small parameters that wait for `finish`
        self.finite: dict[Tensor, Tensor] = {}  # for each parameter that had a gradient since the last `finish`
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for parameter in self.places
            if parameter.requires_grad
        ]

    def finish(self) -> None:
        """Step the parameters that wait.

        Raises NonFiniteGradient if a gradient was not finite; it names the first such parameter in the network's order.
        """
        finite = self.finish_unread()
        if finite and not torch.stack(list(finite.values())).all():
            raise NonFiniteGradient(next(name for name in finite if not finite[name]))

    @torch.no_grad()
    def finish_unread(self) -> dict[str, Tensor]:
        """Step the parameters that wait; returns whether the gradient of each parameter was finite, by its name.

        The flags are bools without dimensions, in the network's order. Reading one makes the CPU wait for the GPU, so
        that is left to the caller.
        """
        self.optimizer.update(self.works)
        self.works.clear()
        for group in self.optimizer.param_groups:
            group["steps"] += 1
        finite, self.finite = self.finite, {}
        return {name: finite[parameter] for parameter, name in self.names.items() if parameter in finite}

    def remove(self) -> None:
        """Take the hooks off. From then on `backward()` leaves gradients again."""
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        """Step a parameter whose gradient is complete, or keep it for `finish` if it is small. Autograd calls this."""
        if parameter in self.finite:
            raise RuntimeError(
                f"{self.names[parameter]} has stepped since the last finish(): no accumulation in backward"
            )
        # `finish` reads this, or its caller; reading it here would make the CPU wait for the GPU at every parameter.
        self.finite[parameter] = parameter.grad.isfinite().all()
        index, place = self.places[parameter]
        work = self.optimizer.work_of(parameter, self.optimizer.param_groups[index], place)
        parameter.grad = None  # `work` holds the only reference to it now
        if parameter.numel() <= SMALL:
            self.works.append(work)
        else:
            self.optimizer.update([work])


def is_fsdp(module: nn.Module) -> bool:
    """Whether a module is wrapped by the first version of FSDP."""
    # A network can be wrapped only if its module is imported already; importing it here would take a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def _refuse(network: nn.Module, clip_norm: float | None, grad_accumulation: int) -> None:
    """Raise ValueError, by name, for what cannot be combined with the step in the backward pass."""
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
