"""The optimizers that params.yaml can name, and how much memory their state takes."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from kernels.came8bit import Came, Came8bit
from kernels.came8bit.state import is_matrix
from kernels.kernel_choice import chosen_kernels, use_triton


class Options(NamedTuple):
    """Options that CAME alone has. AdamW always corrects its bias, and does not round stochastically."""

    seed: int
    bias_correction: bool
    correction: bool

    def came(self) -> dict[str, Any]:
        """The keyword arguments of `Came` and `Came8bit`."""
        return {"stochastic_rounding": not self.correction, "kernels": chosen_kernels(), **self._asdict()}


def _came(parameters: list[Parameter], lr: float, weight_decay: float, options: Options) -> Optimizer:
    return Came(parameters, lr, weight_decay=weight_decay, **options.came())


def _came8bit(parameters: list[Parameter], lr: float, weight_decay: float, options: Options) -> Optimizer:
    return Came8bit(parameters, lr, weight_decay=weight_decay, **options.came())


def _adamw(parameters: list[Parameter], lr: float, weight_decay: float, _: Options) -> Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


def _adamw8bit(parameters: list[Parameter], lr: float, weight_decay: float, _: Options) -> Optimizer:
    # The import takes more than a second, and only this optimizer needs it.
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[list[Parameter], float, float, Options], Optimizer]] = {
    "came8bit": _came8bit,
    "came": _came,
    "adamw8bit": _adamw8bit,
    "adamw": _adamw,
}


def build_optimizer(
    name: str,
    parameters: Iterable[Parameter],
    learning_rate: float,
    weight_decay: float,
    seed: int = 0,
    bias_correction: bool = False,
    correction: bool = False,
) -> Optimizer:
    """The optimizer `name` over `parameters`; every one of them has decoupled weight decay.

    `came8bit` and `came` have SANA-1.5's betas (0.9, 0.999, 0.9999) and epsilons (1e-30, 1e-16), and run on the
    kernels that this process has chosen. They round bfloat16 parameters stochastically, by bits that follow from
    `seed`; with `correction` they keep 8 bits more of each instead. With `bias_correction` their running means are
    corrected. Both options are ours. AdamW's means always are corrected, and it does not know the others. `adamw8bit`
    is bitsandbytes' and `adamw` is torch's fused AdamW, both with betas (0.9, 0.999) and epsilon 1e-8. Raises
    ValueError for an unknown name, with the nearest known one.
    """
    if name not in OPTIMIZERS:
        nearest = difflib.get_close_matches(name, OPTIMIZERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"optimizer is {name!r}: it must be one of {list(OPTIMIZERS)}; did you mean {nearest!r}?")
    return OPTIMIZERS[name](list(parameters), learning_rate, weight_decay, Options(seed, bias_correction, correction))


def takes_found_inf(optimizer: Optimizer, device: torch.device, sharded: bool) -> bool:
    """Whether an optimizer leaves parameters and state as they are while its attribute `found_inf` is a tensor of 1.

    CAME and torch's fused optimizers do; bitsandbytes' do not. Of sharded parameters only CAME's Triton kernels do so
    without a wait of the host, and they do not take corrections.
    """
    if sharded:
        in_triton = isinstance(optimizer, Came) and use_triton(optimizer.kernels, device)
        return in_triton and not optimizer.correction
    # torch.amp.GradScaler finds the fused optimizers by this attribute, too.
    return isinstance(optimizer, Came) or getattr(optimizer, "_step_supports_amp_scaling", False)


def state_bytes_per_parameter(optimizer: Optimizer) -> float:
    """Bytes of state for each trained number. A tensor that parameters share (a map of bitsandbytes) counts once."""
    return _bytes_per_parameter(optimizer, list(optimizer.state))


def state_bytes_by_kind(optimizer: Optimizer) -> dict[str, float]:
    """Bytes of state for each trained number, by the kinds of layers that `kind_of` tells apart."""
    kinds: dict[str, list[Tensor]] = {}
    for parameter in optimizer.state:
        kinds.setdefault(kind_of(parameter), []).append(parameter)
    return {kind: _bytes_per_parameter(optimizer, parameters) for kind, parameters in sorted(kinds.items())}


def kind_of(parameter: Tensor) -> str:
    """The kind of layer a parameter belongs to, as far as optimizers treat kinds differently."""
    if parameter.dim() <= 1:
        return "vector"
    if parameter.dim() == 2:
        return "matrix"
    if is_matrix(parameter):
        return "1x1 convolution"
    return "depth-wise convolution" if parameter.dim() == 4 and parameter.shape[1] == 1 else "other"


def _bytes_per_parameter(optimizer: Optimizer, parameters: list[Tensor]) -> float:
    tensors = {
        # The storage is known by its object: tensors on the `meta` device have no address.
        (value.untyped_storage()._cdata, value.storage_offset()): value.nbytes
        for parameter in parameters
        for value in optimizer.state[parameter].values()
        if isinstance(value, Tensor)
    }
    if not parameters:
        raise ValueError("the optimizer has no state before its first step")
    return sum(tensors.values()) / sum(parameter.numel() for parameter in parameters)
