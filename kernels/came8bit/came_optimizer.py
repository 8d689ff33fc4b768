"""CAME and CAME-8bit as torch optimizers (SANA-1.5 section 2.3).

Matrices have factored statistics, and so have 1x1 convolutions, which are taken as the matrix O x I. All other
parameters keep full statistics and step by their momentum. CAME-8bit keeps the momentum of matrices of more than 16,384
entries in 8 bits, in blocks of 2048 elements. Everything else stays float32.

This code differs from the published code (NVlabs/Sana, came-pytorch) as follows:

* blocks are 2048 elements of the flattened tensor, as in the paper; there they are chunks of 2048 rows;
* a constant block is exact; there it is 0 / 0;
* a 1x1 convolution is factored as a matrix, as in NVlabs/Sana; came-pytorch factors its last two dimensions, 1 x 1;
* the option `bias_correction` is ours;
* the RMS of the parameters is left out; there it is computed at every step and never used;
* loaded state keeps its dtypes: codes stay uint8, and statistics stay float32 beside bfloat16 parameters.

The paper's min-max map has a limit: it does not represent zero exactly. A row whose gradient is always zero, in a block
with rows of large momentum, gets a momentum of up to half a quantum. CAME divides that by the row's own instability,
which is small, and so steps the row as far as the others. This is harmless while every row is trained, and a block of
zeros stays zero. bitsandbytes' dynamic map represents zero.
"""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kernels.blockwise import Map
from kernels.blockwise.reference import MAPS
from kernels.came8bit import step_in_pytorch
from kernels.came8bit.came_step import BETAS, EPSILONS, NO_CORRECTIONS, Betas, Corrections, Epsilons
from kernels.came8bit.rounding import Key, key_of
from kernels.came8bit.state import Settings, State, Work, initial_state, is_dtensor, is_matrix, layout
from kernels.kernel_choice import Choice, use_triton

DTYPES = (torch.float32, torch.bfloat16)  # of parameters and gradients

Loss = TypeVar("Loss")


class Came(torch.optim.Optimizer):
    """CAME with float32 state. Parameters are float32 or bfloat16, whole or sharded by rows (see `step_on_shards`).

    The betas are for (momentum, square, instability), the epsilons for (square, instability). Weight decay is
    decoupled: p <- p - lr * (weight_decay * p + step). `kernels` is as in `kernels.kernel_choice`.

    With `stochastic_rounding`, a bfloat16 parameter is rounded once a step, up or down at random, so that the mean is
    right. The random bits depend on `seed`, the step, the parameter's place in the optimizer and the entry's place in
    the parameter, and on nothing else. With `correction`, the state holds 8 bits more of a bfloat16 parameter, to
    which the next step adds them (`kernels.came8bit.correction`). The Triton kernels do not take such parameters, so
    plain PyTorch steps them on GPUs too. With neither, parameters are rounded to nearest.

    With `bias_correction` the running means are divided by 1 - beta^n after n steps of the optimizer, as AdamW's are.
    So the first steps are of the rate's size (`came_step.Corrections`). This is ours; the published optimizer has none.

    A gradient that is not finite makes its parameter not finite, and so does one beyond 1.8e19, whose square is not
    finite: the caller checks gradients. Raises ValueError for settings out of range.

    The caller may set `found_inf`, as `torch.amp.GradScaler` does for torch's fused optimizers. While this tensor
    (float32, one number) is 1, steps change no parameter and no tensor of the state, though they are counted. The
    Triton kernels read it on the GPU. Elsewhere the host reads it, for which it waits.
    """

    map: Map | None = None
    found_inf: Tensor | None = None
    bias_correction: bool = False  # of an optimizer that was pickled before there was the option
    correction: bool = False  # likewise

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: Betas = BETAS,
        eps: Epsilons = EPSILONS,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = False,
        stochastic_rounding: bool = False,
        correction: bool = False,
        seed: int = 0,
        kernels: Choice = "auto",
    ) -> None:
        """Check the settings; the state of a parameter is made at its first step."""
        check_settings(lr, betas, eps, weight_decay, seed, kernels)
        if stochastic_rounding and correction:
            raise ValueError("CAME has no stochastic_rounding with correction: choose one of them")
        self.bias_correction = bias_correction
        self.stochastic_rounding, self.correction = stochastic_rounding, correction
        self.seed, self.kernels = seed, kernels
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0})

    def __getstate__(self) -> dict[str, Any]:
        """What copying and pickling keep."""
        # torch's own method keeps none of an optimizer's attributes but its state and its groups.
        names = ("bias_correction", "stochastic_rounding", "correction", "seed", "kernels", "map")
        own = {name: getattr(self, name) for name in names}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` gave, or an older state."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("steps", 0)  # older states do not count steps

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Update every parameter that has a gradient; returns the loss that `closure` returns, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(self._works())
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def work_of(self, parameter: Tensor, group: dict[str, Any], place: int) -> Work:
        """What one step needs to know of a parameter that has a gradient.

        The parameter is in `group`, and is the `place`-th of the optimizer. Raises ValueError if the parameter or its
        gradient is not dense, or is neither float32 nor bfloat16.
        """
        for name, tensor in (("parameter", parameter), ("gradient", parameter.grad)):
            if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
                kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
                raise ValueError(f"CAME steps dense float32 and bfloat16; {name} {place} is {kind}")
        # Schedulers may make the rate a tensor.
        betas: Betas = tuple(group["betas"])
        corrections = Corrections.after(group["steps"] + 1, betas) if self.bias_correction else NO_CORRECTIONS
        settings = Settings(float(group["lr"]), betas, tuple(group["eps"]), group["weight_decay"], corrections)
        key = self._key(parameter, group["steps"], place)
        return Work(parameter, parameter.grad, self._state_of(parameter), settings, key)

    def update(self, works: list[Work]) -> None:
        """Update parameters and states in place, each by the code that can take it. The caller counts the steps."""
        sharded, sharded_in_triton, in_triton, in_pytorch = [], [], [], []
        for work in works:
            if work.parameter.numel() == 0:
                continue  # it has no entries to average over
            takes_triton = use_triton(self.kernels, work.parameter.device) and _fits_kernels(work)
            if is_dtensor(work.parameter):
                (sharded_in_triton if takes_triton else sharded).append(work)
            elif takes_triton:
                in_triton.append(work)
            else:
                in_pytorch.append(work)
        if self.found_inf is not None and (sharded or in_pytorch) and self.found_inf.item():
            return
        if sharded:
            from kernels.came8bit import step_on_shards  # imports torch.distributed.tensor, half a second

            step_on_shards.step(sharded, self.map)
        if sharded_in_triton:
            from kernels.came8bit import step_on_shards, step_on_shards_in_triton

            for group, alike in step_on_shards.sharded_alike(sharded_in_triton):
                step_on_shards_in_triton.step(alike, self.map, group, self.found_inf)
        if in_triton:
            from kernels.came8bit import step_in_triton  # Triton is not installed everywhere

            step_in_triton.step(in_triton, self.map, self.found_inf)
        step_in_pytorch.step(in_pytorch, self.map)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit.

        Raises ValueError if the state belongs to another optimizer or to other parameters. Then nothing has changed.
        """
        identifiers = [identifier for group in state_dict["param_groups"] for identifier in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        states = {
            parameter: self._checked(identifier, parameter, state_dict["state"][identifier])
            for identifier, parameter in zip(identifiers, parameters, strict=False)  # torch compares their number below
            if identifier in state_dict["state"]
        }
        # torch would cast the whole state to the parameter's dtype, codes included. So torch gets the groups alone.
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(states)

    def _checked(self, identifier: int, parameter: Tensor, saved: State) -> State:
        """A copy of the saved state of one parameter. Raises ValueError unless it fits the parameter."""
        expected, found = layout(initial_state(parameter, self.map, self.correction)), layout(saved)
        if found != expected:
            raise ValueError(
                f"optimizer state of parameter {identifier} is {found}, not {expected}: "
                "load it into the optimizer and the network that saved it"
            )
        # These are copies because steps work in place; and a step needs contiguous tensors.
        return {name: _copied(saved[name].to(parameter.device)) for name in expected}

    def _works(self) -> list[Work]:
        """The work of one step: one entry for each parameter that has a gradient."""
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        return [
            self.work_of(parameter, group, place)
            for place, (parameter, group) in enumerate(parameters)
            if parameter.grad is not None
        ]

    def _state_of(self, parameter: Tensor) -> State:
        """The state of a parameter, made now if there is none."""
        if not self.state[parameter]:
            self.state[parameter] = initial_state(parameter, self.map, self.correction)
        return self.state[parameter]

    def _key(self, parameter: Tensor, step: int, place: int) -> Key | None:
        """What draws the random bits of stochastic rounding; None where the parameter is rounded to nearest."""
        if not self.stochastic_rounding or parameter.dtype != torch.bfloat16:
            return None
        return key_of(self.seed, step, place)


class Came8bit(Came):
    """CAME that keeps the momentum of large matrices in 8 bits: about one byte of state for each of their entries.

    `map` is `linear`, the paper's min-max map, or `dynamic`, the map of bitsandbytes. All else is as in `Came`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: Betas = BETAS,
        eps: Epsilons = EPSILONS,
        weight_decay: float = 0.0,
        *,
        map: Map = "linear",
        bias_correction: bool = False,
        stochastic_rounding: bool = False,
        correction: bool = False,
        seed: int = 0,
        kernels: Choice = "auto",
    ) -> None:
        """Check the settings. Raises ValueError for an unknown `map`, too."""
        if map not in MAPS:
            raise ValueError(f"map is {map!r}: it must be one of {list(MAPS)}")
        self.map = map
        options = {"stochastic_rounding": stochastic_rounding, "correction": correction, "seed": seed}
        options |= {"bias_correction": bias_correction, "kernels": kernels}
        super().__init__(params, lr, betas, eps, weight_decay, **options)


def check_settings(
    lr: float | Tensor, betas: Betas, eps: Epsilons, weight_decay: float, seed: int, kernels: Choice
) -> None:
    """Raise ValueError with the name of a setting that CAME cannot have."""
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
    """A contiguous copy; the copy of a DTensor keeps the strides of its shards."""
    return tensor.clone() if is_dtensor(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _fits_kernels(work: Work) -> bool:
    """Whether the Triton kernels can take a parameter (see `step_in_triton`)."""
    parameter, tensors = work.parameter, (work.parameter, work.gradient, *work.state.values())
    if "correction" in work.state:
        return False
    small = parameter.numel() < 2**31 and (not is_matrix(parameter) or parameter.shape[1] < 2**20)
    return small and all(tensor.is_contiguous() for tensor in tensors)
