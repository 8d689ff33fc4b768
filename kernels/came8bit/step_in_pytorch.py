"""The CAME step of whole parameters in plain PyTorch. It runs on the CPU, and the Triton kernels are held to it.

Parameters of one shape are stacked, up to what a core's cache holds, so that many small parameters take few calls. Each
parameter gets the bits that it would get alone. A large parameter is worked on in place: beside its gradient that takes
three float32 copies of it.
"""

from torch import Tensor

from kernels.blockwise import Map
from kernels.came8bit.batches import batches, descend, stacked
from kernels.came8bit.came_step import FactoredMean, update_matrices, update_others
from kernels.came8bit.state import State, Work, is_matrix, pack, unpack


def step(works: list[Work], map: Map | None) -> None:
    """Update parameters and states in place."""
    for batch in batches(works):
        _step_batch(batch, map)


def _step_batch(works: list[Work], map: Map | None) -> None:
    """Update parameters that `batches` has put together."""
    states = [work.state for work in works]
    corrections = [single["correction"] for single in states if "correction" in single]
    state = {name: stacked([single[name] for single in states]) for name in states[0] if name != "correction"}
    momentum = unpack(state)  # float32, whatever the state holds
    descend(works, [work.parameter for work in works], corrections, _movement(works, state, momentum))
    # The parameters have moved by the exact momentum; only what is kept for the next step is coded.
    state |= pack(momentum, map)
    for index, single in enumerate(states):
        single.update((name, tensor[index]) for name, tensor in state.items())


def _movement(works: list[Work], state: State, momentum: Tensor) -> Tensor:
    """The steps (K, *shape) of parameters of one shape; statistics and momentum are updated in place."""
    settings = works[0].settings
    gradient = stacked([work.gradient for work in works]).float()
    if not is_matrix(works[0].parameter):
        # `view` raises where the strides do not allow it. `reshape` would make a copy, and the update would be lost.
        moved = (tensor.view(len(works), -1) for tensor in (momentum, state["square"]))
        how = (settings.betas, settings.eps, settings.corrections)
        return update_others(gradient.reshape(len(works), -1), *moved, *how).view(gradient.shape)
    square = FactoredMean(state["square_row"], state["square_column"])
    instability = FactoredMean(state["instability_row"], state["instability_column"])
    tensors = (gradient.flatten(2), momentum.flatten(2), square, instability)
    return update_matrices(*tensors, settings.betas, settings.eps, settings.corrections).view(gradient.shape)
