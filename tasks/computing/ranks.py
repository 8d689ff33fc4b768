"""The processes that compute one stage together: which of them this one is, and what they tell each other.

A stage that was not launched on several processes (`tasks.runtime.launch_ranks`) is rank 0 of 1: nothing here costs it
anything, and what one process computes is what it would without. Every function but the first three is a collective:
all ranks call it, in the same order. What is told goes through the memory of the CPU (gloo), also where networks
compute on GPUs.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Value = TypeVar("Value")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def dealt(count: int) -> range:
    """Which of `count` pieces of work this process does: every `world_size()`-th, beginning with its own number."""
    return range(rank(), count, world_size())


def gather(value: Any) -> list[Any]:
    """The value of each rank, on all of them; values are what JSON can hold, floats to the bit."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in _all_gather(torch.tensor([len(data)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    parts = _all_gather(padded)
    return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def collect(values: Sequence[Value]) -> list[Value]:
    """What came of all pieces of work, in their order, from what came of those that were dealt to each rank."""
    parts = gather(list(values))
    return [parts[place % len(parts)][place // len(parts)] for place in range(sum(map(len, parts)))]


def gather_arrays(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The array of each rank, on all of them; all are of one shape and type."""
    if world_size() == 1:
        return [array]
    return [part.numpy() for part in _all_gather(torch.from_numpy(np.ascontiguousarray(array)))]


def mean(value: float) -> float:
    """The mean over ranks, added in their order; the value itself where there is one."""
    values = gather(value)
    return sum(values) / len(values) if len(values) > 1 else value


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    gather(None)


def _all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts
