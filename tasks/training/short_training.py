"""Training of about a minute, for the small encoders: AdamW with one cycle of the learning rate. It cannot resume."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tasks.runtime.context import Context
from tasks.system.errors import UserError
from tasks.system.files import write_csv
from tasks.system.progress import progress

BETAS = (0.9, 0.95)  # the usual 0.999 would average over more steps than a short run has
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.05
CLIP_NORM = 1.0
LOG_EVERY = 10


def fit(
    context: Context,
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
) -> None:
    """Make `steps` updates on `loss(step)`, whose first step is 0. Logs the loss and writes it to `history.csv`.

    Raises UserError at the first loss or gradient that is not finite, before its update.
    """
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, learning_rate, BETAS, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    history: list[dict[str, float]] = []
    recent: list[float] = []
    with progress(context.name, steps) as meter:
        for step in range(steps):
            value = loss(step)
            recent.append(value.item())
            optimizer.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(weights, CLIP_NORM)
            check_finite(recent[-1], norm.item(), step, context.name, partial(loss_and_norm, loss, step, weights))
            optimizer.step()
            schedule.step()
            meter.advance(note=f"loss {recent[-1]:.4f}")
            if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
                mean = sum(recent) / len(recent)
                history.append({"step": step + 1, "loss": mean})
                context.tracker.log_metrics({"loss": mean}, step=step + 1)
                recent = []
    write_csv(context.out / "history.csv", ("step", "loss"), history)


def check_finite(
    loss: float, norm: float, step: int, section: str, run_again: Callable[[], tuple[float, float]]
) -> None:
    """Raises UserError, naming the section of params.yaml, if the loss or the gradient norm is not finite.

    `run_again` then computes both once more from the same state, and the line says whether the numbers come again. The
    data are never the cause: these trainings learn from pictures, whose numbers are whole, and from text.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    again = run_again()
    if all(map(math.isfinite, again)):
        what = (
            f"not repeatable: run once more from the same state, they are {again[0]:.6g} and {again[1]:.6g}: "
            "suspect the memory or the GPU of this machine, and run again"
        )
    else:
        what = f"lower {section}.learning_rate (run once more, it is not finite again; the data are not the cause)"
    raise UserError(
        f"params.yaml: {section}: the loss is {loss} and the norm of its gradient {norm} at step {step}: {what}"
    )


def loss_and_norm(loss: Callable[[int], Tensor], step: int, weights: Sequence[nn.Parameter]) -> tuple[float, float]:
    """The loss of a step and the norm of its gradient, which replaces the gradients of the weights."""
    for weight in weights:
        weight.grad = None
    value = loss(step)
    value.backward()
    return value.item(), nn.utils.clip_grad_norm_(weights, CLIP_NORM).item()
