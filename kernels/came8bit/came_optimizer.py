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
bitsandbytes' dynamic map represents zero.
"""

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kernels.blockwise import Map
from kernels.blockwise.reference import MAPS
from kernels.came8bit import step_in_pytorch
from kernels.came8bit.came_update import Betas, Epsilons
from kernels.came8bit.rounding import Key, key_of
from kernels.came8bit.state import Settings, State, Work, initial_state, is_dtensor, is_matrix, layout
from kernels.choice import Choice, use_triton

DTYPES = (torch.float32, torch.bfloat16)  # of parameters and gradients


class Came(torch.optim.Optimizer):
    """CAME with float32 state. Parameters are float32 or bfloat16, whole or sharded by rows (see `step_on_shards`).

    Betas are those of (momentum, square, instability), epsilons those of (square, instability). Weight decay is
    decoupled: p <- p - lr * (weight_decay * p + step). With `stochastic_rounding`, bfloat16 parameters are rounded once
    a step, up or down at random and right in the mean, by bits that depend on `seed`, the step, the parameter's place
    in the optimizer and the entry's in it alone; else to nearest. `kernels` is as in `kernels.choice`. A gradient
    that is not finite, or beyond 1.8e19, whose square is not, makes its parameter not finite: the caller checks
    gradients. Raises ValueError for settings out of range.
    """

    map: Map | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: Betas = (0.9, 0.999, 0.9999),
        eps: Epsilons = (1e-30, 1e-16),
        weight_decay: float = 0.0,
        *,
        stochastic_rounding: bool = False,
        seed: int = 0,
        kernels: Choice = "auto",
    ) -> None:
        check_settings(lr, betas, eps, weight_decay, seed, kernels)
        self.stochastic_rounding, self.seed, self.kernels = stochastic_rounding, seed, kernels
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: torch's own forgets attributes."""
        own = {name: getattr(self, name) for name in ("stochastic_rounding", "seed", "kernels", "map")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, also what was saved before steps were counted."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(self._works())
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def work_of(self, parameter: Tensor, group: dict[str, Any], place: int) -> Work:
        """The work of a parameter that has a gradient, is in `group` and the optimizer's `place`-th.

        Raises ValueError for a parameter or gradient of another kind than CAME steps.
        """
        for name, tensor in (("parameter", parameter), ("gradient", parameter.grad)):
            if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
                kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
                raise ValueError(f"CAME steps dense float32 and bfloat16; {name} {place} is {kind}")
        # a rate may be a tensor, as schedulers allow
        settings = Settings(float(group["lr"]), tuple(group["betas"]), tuple(group["eps"]), group["weight_decay"])
        key = self._key(parameter, group["steps"], place)
        return Work(parameter, parameter.grad, self._state_of(parameter), settings, key)

    def update(self, works: list[Work]) -> None:
        """Update parameters and states in place, each by what serves it. Steps are not counted here."""
        sharded, in_triton, in_pytorch = [], [], []
        for work in works:
            if work.parameter.numel() == 0:
                continue
            if is_dtensor(work.parameter):
                sharded.append(work)
            elif use_triton(self.kernels, work.parameter.device) and _fits_kernels(work):
                in_triton.append(work)
            else:
                in_pytorch.append(work)
        if sharded:
            from kernels.came8bit import step_on_shards

            step_on_shards.step(sharded, self.map)
        if in_triton:
            from kernels.came8bit import step_in_triton

            step_in_triton.step(in_triton, self.map)
        step_in_pytorch.step(in_pytorch, self.map)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit.

        Raises ValueError, and leaves all as it was, if the state is of another optimizer or of other parameters.
        """
        identifiers = [identifier for group in state_dict["param_groups"] for identifier in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        states = {
            parameter: self._checked(identifier, parameter, state_dict["state"][identifier])
            for identifier, parameter in zip(identifiers, parameters, strict=False)  # torch compares the groups below
            if identifier in state_dict["state"]
        }
        # torch would cast all state to the parameter's dtype, codes included, so it gets the groups alone
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(states)

    def _checked(self, identifier: int, parameter: Tensor, saved: State) -> State:
        expected, found = layout(initial_state(parameter, self.map)), layout(saved)
        if found != expected:
            raise ValueError(
                f"optimizer state of parameter {identifier} is {found}, not {expected}: "
                "load it into the optimizer and the network that saved it"
            )
        # copies, as steps work in place, and of the strides that they need
        return {name: _copied(saved[name].to(parameter.device)) for name in expected}

    def _works(self) -> list[Work]:
        """The work of this step: every parameter that has a gradient."""
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        return [
            self.work_of(parameter, group, place)
            for place, (parameter, group) in enumerate(parameters)
            if parameter.grad is not None
        ]

    def _state_of(self, parameter: Tensor) -> State:
        if not self.state[parameter]:
            self.state[parameter] = initial_state(parameter, self.map)
        return self.state[parameter]

    def _key(self, parameter: Tensor, step: int, place: int) -> Key | None:
        if not self.stochastic_rounding or parameter.dtype != torch.bfloat16:
            return None
        return key_of(self.seed, step, place)


class Came8bit(Came):
    """CAME that keeps the momentum of large matrices in 8 bits: about one byte of state for each of their entries.

    `map` is `linear`, the paper's min-max map, or `dynamic`, that of bitsandbytes. Raises ValueError for another.
    """

    def __init__(self, params: ParamsT, lr: float, *arguments: Any, map: Map = "linear", **options: Any) -> None:
        if map not in MAPS:
            raise ValueError(f"map is {map!r}: it must be one of {list(MAPS)}")
        self.map = map
        super().__init__(params, lr, *arguments, **options)


def check_settings(
    lr: float | Tensor, betas: Betas, eps: Epsilons, weight_decay: float, seed: int, kernels: Choice
) -> None:
    """Raise ValueError, by name, for a setting that CAME cannot have."""
    right = {
        f"lr {lr}: it must not be negative": lr >= 0,
        f"betas {betas}: they must be three in [0, 1)": len(betas) == 3 and all(0 <= beta < 1 for beta in betas),
        f"eps {eps}: they must be two that are not negative": len(eps) == 2 and min(eps) >= 0,
        f"weight_decay {weight_decay}: it must not be negative": weight_decay >= 0,
        f"seed {seed}: it must be of 63 bits": 0 <= seed < 2**63,
        f"kernels {kernels!r}: it must be one of {get_args(Choice)}": kernels in get_args(Choice),
    }
    for message, holds in right.items():
        if not holds:
            raise ValueError(f"CAME has no {message}")


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous copy; a DTensor is what its shards are."""
    return tensor.clone() if is_dtensor(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _fits_kernels(work: Work) -> bool:
    """Whether the Triton kernels can take a parameter: see their module."""
    parameter, tensors = work.parameter, (work.parameter, work.gradient, *work.state.values())
    small = parameter.numel() < 2**31 and (not is_matrix(parameter) or parameter.shape[1] < 2**20)
    return small and all(tensor.is_contiguous() for tensor in tensors)
