"""Parameters that are alike and step together, as one tensor with a first dimension more.

Stacking them saves calls: many small parameters take as many operations as one. Shapes: K parameters of N entries.
"""

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from kernels.came8bit import correction, rounding
from kernels.came8bit.state import Work

# So many entries are updated together: few enough to stay in a core's cache.
BATCH_ENTRIES = 2**18


def batches(works: list[Work], entries: int = BATCH_ENTRIES, ranks: int = 1) -> Iterator[list[Work]]:
    """`works` of like shape, dtypes, device and settings, of which this process holds about `entries` entries at once.

    A larger parameter is alone. If the rows of parameters are sharded, they are sharded in one way over `ranks`
    processes. The batches follow from whole shapes, so that all processes make the same ones.
    """
    alike: dict[Hashable, list[Work]] = {}
    for work in works:
        parameter = work.parameter
        dtypes = (parameter.dtype, work.gradient.dtype)
        rounded = (work.key is None, "correction" in work.state)
        kind = (parameter.shape, dtypes, parameter.device, work.settings, rounded)
        alike.setdefault(kind, []).append(work)
    for same in alike.values():
        length = max(1, entries * ranks // same[0].parameter.numel())
        for start in range(0, len(same), length):
            yield same[start : start + length]


def stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors along a new first dimension. A single tensor is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def put_back(tensors: list[Tensor], values: Tensor) -> None:
    """Copy `values`, one for each tensor along the first dimension, into the tensors, unless they are their memory."""
    if len(tensors) > 1 or values.data_ptr() != tensors[0].data_ptr():
        torch._foreach_copy_(tensors, list(values.unbind()))


def descend(
    works: list[Work], parameters: list[Tensor], corrections: list[Tensor], movement: Tensor, first: int = 0
) -> None:
    """p <- p - lr * (weight_decay * p + movement) for a batch, in place.

    `parameters` are what this process holds of the parameters of `works`, and `corrections` likewise of their
    corrections, if they have any. `first` is the index of their first entry in
    the whole flattened parameter. `movement` is (K, *shape).
    """
    lr, weight_decay = works[0].settings.lr, works[0].settings.weight_decay
    if corrections:
        stack, rest = stacked(parameters).contiguous(), stacked(corrections).contiguous()
        correction.descend(stack.view(-1), rest.view(-1), movement.reshape(-1), lr, weight_decay)
        put_back(parameters, stack)
        put_back(corrections, rest)
        return
    keys = [work.key for work in works if work.key is not None]
    if not keys:
        if weight_decay:
            # One product with 1 - lr * weight_decay would round that factor, and its error would add up over steps.
            torch._foreach_add_(parameters, parameters, alpha=-lr * weight_decay)
        torch._foreach_add_(parameters, list(movement.unbind()), alpha=-lr)
        return
    stack = stacked(parameters).contiguous()
    rounding.descend(stack.flatten(1), movement.flatten(1), lr, weight_decay, keys, first)
    put_back(parameters, stack)
