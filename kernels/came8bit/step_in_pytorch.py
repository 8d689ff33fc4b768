"""The CAME step of whole parameters in plain PyTorch. It runs on the CPU, and the Triton kernels are held to it.

Parameters of one shape are stacked, up to what a core's cache holds, so that many small parameters take few calls. Each
parameter gets the bits that it would get alone. A large parameter is worked on in place: beside its gradient that takes
three float32 copies of it.
"""

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from kernels.blockwise import Map
from kernels.came8bit.came_step import FactoredMean, update_matrices, update_others
from kernels.came8bit.rounding import descend
from kernels.came8bit.state import State, Work, is_matrix, pack, unpack

# So many entries are updated together: few enough to stay in a core's cache.
BATCH_ENTRIES = 2**18


def step(works: list[Work], map: Map | None) -> None:
    """Update parameters and states in place."""
    for batch in _batches(works):
        _step_batch(batch, map)


def _step_batch(works: list[Work], map: Map | None) -> None:
    """Update parameters that `_batches` has put together."""
    states = [work.state for work in works]
    state = {name: _stacked([single[name] for single in states]) for name in states[0]}
    momentum = unpack(state)  # float32, whatever the state holds
    _descend(works, _movement(works, state, momentum))
    # The parameters have moved by the exact momentum; only what is kept for the next step is coded.
    state |= pack(momentum, map)
    for index, single in enumerate(states):
        single.update((name, stacked[index]) for name, stacked in state.items())


def _movement(works: list[Work], state: State, momentum: Tensor) -> Tensor:
    """The steps (K, *shape) of parameters of one shape; statistics and momentum are updated in place."""
    settings = works[0].settings
    gradient = _stacked([work.gradient for work in works]).float()
    if not is_matrix(works[0].parameter):
        # `view` raises where the strides do not allow it. `reshape` would make a copy, and the update would be lost.
        moved = (tensor.view(len(works), -1) for tensor in (momentum, state["square"]))
        how = (settings.betas, settings.eps, settings.corrections)
        return update_others(gradient.reshape(len(works), -1), *moved, *how).view(gradient.shape)
    square = FactoredMean(state["square_row"], state["square_column"])
    instability = FactoredMean(state["instability_row"], state["instability_column"])
    tensors = (gradient.flatten(2), momentum.flatten(2), square, instability)
    return update_matrices(*tensors, settings.betas, settings.eps, settings.corrections).view(gradient.shape)


def _descend(works: list[Work], movement: Tensor) -> None:
    """p <- p - lr * (weight_decay * p + movement) for parameters of one shape."""
    lr, weight_decay = works[0].settings.lr, works[0].settings.weight_decay
    parameters = [work.parameter for work in works]
    if works[0].key is None:
        if weight_decay:
            # One product with 1 - lr * weight_decay would round that factor, and its error would add up over steps.
            torch._foreach_add_(parameters, parameters, alpha=-lr * weight_decay)
        torch._foreach_add_(parameters, list(movement.unbind()), alpha=-lr)
        return
    for work, one in zip(works, movement.unbind(), strict=True):
        descend(work.parameter, one, lr, weight_decay, work.key)


def _stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors along a new first dimension. A single tensor is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _batches(works: list[Work]) -> Iterator[list[Work]]:
    """`works` of like shape, dtypes, device and settings, at most BATCH_ENTRIES entries at once; a larger one alone."""
    alike: dict[Hashable, list[Work]] = {}
    for work in works:
        parameter = work.parameter
        dtypes = (parameter.dtype, work.gradient.dtype)
        kind = (parameter.shape, dtypes, parameter.device, work.settings, work.key is None)
        alike.setdefault(kind, []).append(work)
    for same in alike.values():
        length = max(1, BATCH_ENTRIES // same[0].parameter.numel())
        for start in range(0, len(same), length):
            yield same[start : start + length]
