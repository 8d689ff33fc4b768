"""Says why a step's loss or gradient was not finite: the data, the weights, the code, or nothing that can be repeated.

The samples of the step are looked at first. If their numbers are finite, the step is run once more from the same state.
An error of memory or of a GPU does not come again; an error of the code does, and so does a learning rate that is too
high. Nothing here is done before a step was refused, so training does not pay for it.

Each rank looks at its own rows, and all ranks say the same. All of them must call `cause_of`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model.finite_numbers import is_finite
from tasks.computing import ranks
from tasks.data.encoded_samples import NOT_FINITE
from tasks.system.errors import UserError
from tasks.training.batch_loader import MicroBatches
from tasks.training.fsdp_sharding import local
from tasks.training.unread_steps import ReadStep

MACHINE = "suspect the memory or the GPU of this machine; run again to go on from the last checkpoint"
SETTINGS = "lower the learning rate of params.yaml's section or use float32"

Repeated = tuple[ReadStep, Sequence[Tensor]]
"""A step that was run once more, and the losses (B,) of the samples in each micro-batch of this rank."""


def cause_of(step: int, batches: MicroBatches, network: nn.Module, run_again: Callable[[], Repeated] | None) -> str:
    """Why the numbers of `step` were not finite, and what to do, in the words of one line.

    `run_again` runs the step once more. It is None where the state before the step is gone, because its update was
    made. Raises UserError if a sample cannot be read any more.
    """
    if broken := broken_samples(batches, step):
        return f"the cause is the data: {broken[0]}{_and_more(broken)}"
    if (name := broken_weight(network)) is not None:
        made = "an update before this step" if run_again else "its update or one before it"
        return f"its samples are finite, and the weight {name} is not since {made}: {SETTINGS}"
    if run_again is None:
        return f"its samples are finite, and it cannot be run once more, as its update was made: {SETTINGS}"
    again, losses = run_again()
    if again.finite:
        norm = "" if again.norm is None else f" and gradient norm {again.norm:.6g}"
        return f"not repeatable: run once more from the same state, the step has loss {again.loss:.6g}{norm}: {MACHINE}"
    same = f"the cause is the code or its settings, and not the data: {SETTINGS}"
    odd = samples_without_finite_loss(batches, step, losses)
    if not 0 < len(odd) < batches.batch_size:
        return f"run once more, the step is not finite again, though its samples and the weights are: {same}"
    return (
        f"run once more, the step is not finite again, by {odd[0]}{_and_more(odd)} alone, though the numbers "
        f"of its samples and the weights are: {same}, or leave out what is odd in the data"
    )


def broken_samples(batches: MicroBatches, step: int) -> list[str]:
    """The samples of a step, on all ranks, whose stored numbers are not finite, with what to do."""
    found: list[str] = []
    for part, indices in enumerate(batches.own_samples(step)):
        drawn = batches[step * len(batches.rows) + part]
        if isinstance(drawn, UserError):
            raise drawn
        for row, member in drawn.stored.broken_rows().items():
            place = batches.samples.place(int(indices[row]))
            found.append(f"{place} holds numbers in its .{member} that are {NOT_FINITE}")
    return [one for own in ranks.gather(found) for one in own]


def broken_weight(network: nn.Module) -> str | None:
    """The name of the first parameter that is not finite, on any rank, or None."""
    named = [(name, local(parameter)) for name, parameter in network.named_parameters()]
    finite = torch.stack([is_finite(own) for _, own in named]).tolist()
    own = next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)
    return next((name for name in ranks.gather(own) if name is not None), None)


def samples_without_finite_loss(batches: MicroBatches, step: int, losses: Sequence[Tensor]) -> list[str]:
    """The samples of a step, on all ranks, whose own loss is not finite."""
    broken_B = ~torch.cat([one.float() for one in losses]).isfinite().cpu().numpy()
    indices = np.concatenate(batches.own_samples(step))[broken_B]
    own = [batches.samples.place(int(index)) for index in indices]
    return [one for found in ranks.gather(own) for one in found]


def _and_more(found: Sequence[str]) -> str:
    """How many samples there are besides the first."""
    others = len(found) - 1
    return f" (and {others} more)" if others else ""
