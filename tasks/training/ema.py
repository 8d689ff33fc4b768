"""The exponential moving average (EMA) of a network's weights. Evaluations and checkpoints use the average."""

import torch
from torch import Tensor, nn

from tasks.training.fsdp_sharding import local


class Ema:
    """Averages a network's parameters after every update: e <- d*e + (1-d)*p with d = min(decay, (1+n)/(10+n)).

    The decay warms up with the number of updates n, so that a short run is not averaged with its initial weights. The
    published training code updates before the optimizer's step and so lags one update; here it follows the step.

    With a decay of 0 the average is the parameters themselves, and no copy of them is kept. If the parameters are
    sharded, each rank averages its own rows.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [parameter for parameter in network.parameters()] if decay else []
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Average the parameters in, after update number `updates` (the first is 1)."""
        if not self.parameters:
            return
        decay = min(self.decay, (1 + updates) / (10 + updates))
        averages, parameters = ([local(tensor) for tensor in tensors] for tensors in (self.average, self.parameters))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters. Call it before an evaluation and again after it."""
        for average, parameter in zip(self.average, self.parameters, strict=True):
            kept = local(parameter).clone()
            local(parameter).copy_(local(average))
            local(average).copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages, named by the position of their parameter in the network."""
        return {str(i): average for i, average in enumerate(self.average)}
