"""The processes (ranks) that compute one stage together: the number of this one, and what they send each other.

A stage that runs in one process is rank 0 of 1. Nothing here then costs it time or changes a number. Every function but
the first three is a collective, which all ranks call in the same order. Values travel through the memory of the CPU
(gloo), also where networks compute on GPUs. `tasks.runtime.launch_ranks` starts the ranks.
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
    """The number of processes that compute this stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def dealt(count: int) -> range:
    """The pieces of work, of `count`, that this process does: every `world_size()`-th from its own number on."""
    return range(rank(), count, world_size())


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order. A value is anything that JSON can write; floats keep every bit."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in _all_gather(torch.tensor([len(data)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    parts = _all_gather(padded)
    return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def collect(values: Sequence[Value]) -> list[Value]:
    """The results of all pieces of work, in their order. `values` are the results of this rank's pieces (`dealt`)."""
    parts = gather(list(values))
    return [parts[place % len(parts)][place // len(parts)] for place in range(sum(map(len, parts)))]


def gather_arrays(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The arrays of all ranks, in their order. All have one shape and type."""
    if world_size() == 1:
        return [array]
    return [part.numpy() for part in _all_gather(torch.from_numpy(np.ascontiguousarray(array)))]


def mean(value: float) -> float:
    """The mean over ranks, added in their order. One rank gets its own value back."""
    values = gather(value)
    return sum(values) / len(values) if len(values) > 1 else value


def wait_for_all() -> None:
    """Return when all ranks have called this."""
    gather(None)


def _all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts
