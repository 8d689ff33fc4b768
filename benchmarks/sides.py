"""Implementations of one operation side by side: each is checked against float64 before its time counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import FAILED_WHILE_TIMED, reason_of, timed_in_turns
from torch import Tensor

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest entry
OURS = "ours"


@dataclass(frozen=True)
class Side:
    """An implementation; `definition` is what it is to compute, of float64 tensors."""

    name: str
    function: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    remark: str = ""  # says so if it computes another function than ours


def compare(sides: Sequence[Side], arguments: Sequence[Tensor], rounds: int) -> list[dict[str, Any]]:
    """A row for each side: error, seconds forward, seconds forward and backward, both also as multiples of ours.

    A side that disagrees with its own definition, runs out of memory or fails has no figures, and its `problem` says
    why.
    """
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    gradient = torch.randn_like(sides[0].definition(*arguments))
    errors: dict[str, float] = {}
    problems: dict[str, str] = {}
    for side in sides:
        try:
            errors[side.name] = error_of(side, leaves, gradient)
        except Exception as error:
            torch.cuda.empty_cache()
            problems[side.name] = "out of memory" if isinstance(error, torch.OutOfMemoryError) else reason_of(error)
    able = [side for side in sides if side.name in errors]
    forward = timed_in_turns({side.name: _forward(side, arguments) for side in able}, rounds)
    both = timed_in_turns({side.name: _both(side, leaves, gradient) for side in able}, rounds)
    rows: list[dict[str, Any]] = []
    for side in sides:
        row: dict[str, Any] = {"side": side.name, "remark": side.remark or None}
        row |= {"error": errors.get(side.name), "problem": problems.get(side.name)}
        if not row["problem"] and (side.name not in forward or side.name not in both):
            row["problem"] = FAILED_WHILE_TIMED
        for name, seconds in (("forward", forward), ("forward_backward", both)):
            own, ours = seconds.get(side.name), seconds.get(OURS)
            row |= {f"{name}_ms": own and 1e3 * own, f"{name}_of_ours": own and ours and own / ours}
        rows.append(row)
    return rows


def error_of(side: Side, leaves: Sequence[Tensor], gradient: Tensor) -> float:
    """The largest error of output and gradients, each as a part of its largest entry; ValueError if it is too large."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    results = _results(side.function, leaves, gradient)
    error = 0.0
    for mine, right in zip(results, _results(side.definition, wide, gradient.double()), strict=True):
        error = max(error, ((mine.double() - right).abs().max() / right.abs().max()).item())
    if not error <= TOLERANCES[gradient.dtype]:
        raise ValueError(f"{side.name} is off by {error:.1e} of its own definition: no speed is given")
    return error


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    print(f"\n{title}\n")
    print("| side | forward ms | of ours | forward + backward ms | of ours | error |\n|---|---|---|---|---|---|")
    for row in rows:
        name = f"{row['side']} ({row['remark']})" if row["remark"] else row["side"]
        if row["problem"]:
            print(f"| {name} | {row['problem']} | | | | |")
            continue
        forward, both = (
            f"{row[f'{what}_ms']:.3f} | {_ratio(row[f'{what}_of_ours'])}" for what in ("forward", "forward_backward")
        )
        print(f"| {name} | {forward} | {both} | {row['error']:.0e} |", flush=True)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _results(function: Callable[..., Tensor], leaves: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def _forward(side: Side, arguments: Sequence[Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            side.function(*arguments)

    return run


def _both(side: Side, leaves: Sequence[Tensor], gradient: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(side.function(*leaves), leaves, gradient)
