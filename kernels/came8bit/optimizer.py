"""CAME and CAME-8bit as torch optimizers (SANA-1.5 section 2.3).

Matrices and 1x1 convolutions (as the matrix O x I) have factored statistics; all other parameters keep full ones and
step by their momentum. CAME-8bit keeps the momentum of matrices of more than 16,384 entries in 8 bits, in blocks of
2048 elements; everything else stays float32.

Against the published code (NVlabs/Sana, came-pytorch):

* blocks are 2048 elements of the flattened tensor, as in the paper, not chunks of 2048 rows;
* a constant block is exact instead of 0 / 0;
* a 1x1 convolution is factored as a matrix, as in NVlabs/Sana; came-pytorch factors its last two dimensions, 1 x 1;
* the parameters' RMS, computed there at every step and never used, is left out;
* loaded state keeps its dtypes: codes stay uint8, and statistics float32 beside bfloat16 parameters.

A limit of the paper's min-max map: it does not represent zero exactly. Rows whose gradient is always zero, in a block
with rows of large momentum, keep a momentum of up to half a quantum, and CAME, dividing by the rows' own small
instability, steps them as far as the others. It is harmless while every row is trained; a block of zeros stays zero.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kernels.blockwise import Quantized, dequantize, quantize
from kernels.came8bit.update import Betas, Epsilons, FactoredMean, update_matrices, update_others

QUANTIZED_ABOVE = 16_384
# Parameters are updated together up to this many entries: few enough to stay in a core's cache.
BATCH_ENTRIES = 2**18

State = dict[str, Tensor]


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or a 1x1 convolution's weight (O, I, 1, 1)."""
    return parameter.dim() == 2 or (parameter.dim() == 4 and parameter.shape[2:] == (1, 1))


class Came(torch.optim.Optimizer):
    """CAME with float32 state. Parameters may be float32 or bfloat16, and must be whole (no shards of a matrix).

    Betas are those of (momentum, square, instability), epsilons those of (square, instability). Weight decay is
    decoupled: p <- p - lr * (weight_decay * p + step). A gradient that is not finite makes its parameter not finite:
    the caller checks gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: Betas = (0.9, 0.999, 0.9999),
        eps: Epsilons = (1e-30, 1e-16),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for batch in _batches([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._step_batch(batch, group)
        return loss

    def pack(self, momentum: Tensor) -> State:
        """The entries of the state that hold `momentum` (K, *shape) of K parameters of one shape."""
        return {"momentum": momentum}

    def unpack(self, state: State) -> Tensor:
        """The momentum (K, *shape) that `pack` stored."""
        return state["momentum"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit.

        Raises ValueError if the state is of another optimizer or of other parameters.
        """
        super().load_state_dict(state_dict)
        # torch casts all state to the parameter's dtype, codes included, so it is taken from the source once more.
        identifiers = [identifier for group in state_dict["param_groups"] for identifier in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for identifier, parameter in zip(identifiers, parameters, strict=True):
            if identifier in state_dict["state"]:
                self.state[parameter] = self._checked(identifier, parameter, state_dict["state"][identifier])

    def _checked(self, identifier: int, parameter: Tensor, saved: State) -> State:
        expected, found = _layout(self._initial_state(parameter)), _layout(saved)
        if found != expected:
            raise ValueError(
                f"optimizer state of parameter {identifier} is {found}, not {expected}: "
                "load it into the optimizer and the network that saved it"
            )
        return {name: saved[name].to(parameter.device) for name in expected}

    def _initial_state(self, parameter: Tensor) -> State:
        """The state of a parameter before its first step: zeros."""
        zeros = torch.zeros(parameter.shape, device=parameter.device)
        state = {name: packed[0] for name, packed in self.pack(zeros[None]).items()}
        if not is_matrix(parameter):
            return {**state, "square": torch.zeros_like(zeros)}
        for statistic in ("square", "instability"):
            state[f"{statistic}_row"] = zeros.new_zeros(parameter.shape[0])
            state[f"{statistic}_column"] = zeros.new_zeros(parameter.shape[1])
        return state

    def _step_batch(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = self._initial_state(parameter)
        states = [self.state[parameter] for parameter in parameters]
        state = {name: torch.stack([single[name] for single in states]) for name in states[0]}
        gradient = torch.stack([parameter.grad for parameter in parameters]).float()
        momentum = self.unpack(state)
        if is_matrix(parameters[0]):
            square = FactoredMean(state["square_row"], state["square_column"])
            instability = FactoredMean(state["instability_row"], state["instability_column"])
            tensors = (gradient.flatten(2), momentum.flatten(2), square, instability)
            step = update_matrices(*tensors, group["betas"], group["eps"]).view(gradient.shape)
        else:
            tensors = (gradient.flatten(1), momentum.flatten(1), state["square"].flatten(1))
            update_others(*tensors, group["betas"], group["eps"])
            step = momentum
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(step.unbind()), alpha=-group["lr"])
        state |= self.pack(momentum)
        for index, single in enumerate(states):
            single.update((name, stacked[index]) for name, stacked in state.items())


class Came8bit(Came):
    """CAME that keeps the momentum of large matrices in 8 bits: about one byte of state for each of their entries."""

    def pack(self, momentum: Tensor) -> State:
        """In 8 bits for matrices of more than 16,384 entries, else as it is."""
        if not is_matrix(momentum[0]) or momentum[0].numel() <= QUANTIZED_ABOVE:
            return {"momentum": momentum}
        codes, scale, minimum = quantize(momentum.flatten(1))
        return {"momentum_codes": codes.view(momentum.shape), "momentum_scale": scale, "momentum_minimum": minimum}

    def unpack(self, state: State) -> Tensor:
        """The momentum (K, *shape) that `pack` stored."""
        if "momentum" in state:
            return state["momentum"]
        codes = state["momentum_codes"]
        quantized = Quantized(codes.flatten(1), state["momentum_scale"], state["momentum_minimum"])
        return dequantize(quantized).view(codes.shape)


def _batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """`parameters` by shape, in runs of at most BATCH_ENTRIES entries; a larger one is alone."""
    alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    for same in alike.values():
        length = max(1, BATCH_ENTRIES // same[0].numel())
        for start in range(0, len(same), length):
            yield same[start : start + length]


def _layout(state: State) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtypes and shapes of a state's tensors."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in sorted(state.items())
    }
