"""The losses and gradient norms of the last steps, which stay on the device until they are read all at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from tasks.computing import ranks


@dataclass(frozen=True)
class UnreadStep:
    """A step that was made, with its numbers where they were computed.

    `step` is its number, from 0. `losses` are of its micro-batches. `norm` is None, and `finite` says of each parameter
    by its name whether its gradient was finite, if the parameters stepped within the backward pass.
    """

    step: int
    rate: float
    losses: tuple[Tensor, ...]
    norm: Tensor | None
    finite: Mapping[str, Tensor]


@dataclass(frozen=True)
class ReadStep:
    """A step whose numbers are known: the mean loss over micro-batches and ranks, and the norm of the gradient."""

    step: int
    rate: float
    loss: float
    norm: float | None
    broken: tuple[str, ...]
    """Names of the parameters that stepped within the backward pass by a gradient that was not finite."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite."""
        return isfinite(self.loss) and isfinite(self.norm or 0.0) and not self.broken


class UnreadSteps:
    """Collects steps; `read` empties it."""

    def __init__(self) -> None:
        self._steps: list[UnreadStep] = []

    def add(self, step: UnreadStep) -> None:
        """Keep a step for the next reading."""
        self._steps.append(step)

    def read(self) -> list[ReadStep]:
        """The steps since the last reading, in their order. All ranks must call this after the same step.

        One copy brings all numbers to the host.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        tensors = [tensor.float() for step in steps for tensor in _numbers(step)]
        numbers = iter(torch.stack(tensors).tolist())
        own = [[next(numbers) for _ in _numbers(step)] for step in steps]
        losses = [_mean(values[: len(step.losses)]) for step, values in zip(steps, own, strict=True)]
        over_ranks = [sum(values) / len(values) for values in zip(*ranks.gather(losses), strict=True)]
        return [_read(step, loss, values[-1]) for step, loss, values in zip(steps, over_ranks, own, strict=True)]


def _numbers(step: UnreadStep) -> tuple[Tensor, ...]:
    """The numbers of a step that are always read. The last is the norm, or whether all gradients were finite."""
    if step.norm is not None:
        return (*step.losses, step.norm)
    flags = list(step.finite.values())
    return (*step.losses, torch.stack(flags).all() if flags else torch.ones((), device=step.losses[0].device))


def _mean(losses: list[float]) -> float:
    """The mean of a step's micro-batches, added as they were computed."""
    total = 0.0
    for loss in losses:
        total += loss / len(losses)
    return total


def _read(step: UnreadStep, loss: float, last: float) -> ReadStep:
    norm = None if step.norm is None else last
    all_finite = norm is not None or last == 1
    broken = () if all_finite else tuple(name for name, finite in step.finite.items() if not finite)
    return ReadStep(step.step, step.rate, loss, norm, broken)
