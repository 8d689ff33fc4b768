"""What the GPU day is to reach, and whether it did: read from the result files, each figure beside its goal."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNMEASURED = "unmeasured"
Row = dict[str, Any]
Rows = dict[str, list[Row]]
"""The rows of each benchmark by its name."""


@dataclass(frozen=True)
class Goal:
    """A figure, with a goal if it has one. `value` finds it in the rows, None where it was not measured."""

    figure: str
    value: Callable[[Rows], float | None]
    goal: float | None = None
    at_least: bool = True  # else at most
    form: str = ".2f"

    def line(self, rows: Rows) -> str:
        """The goal as a row of a Markdown table."""
        value = self.value(rows)
        shown = UNMEASURED if value is None else f"{value:{self.form}}"
        if self.goal is None:
            return f"| {self.figure} | {shown} | | |"
        wanted = f"{'at least' if self.at_least else 'at most'} {self.goal:{self.form}}"
        reached = "" if value is None else "yes" if self._reached(value, self.goal) else "no"
        return f"| {self.figure} | {shown} | {wanted} | {reached} |"

    def _reached(self, value: float, goal: float) -> bool:
        return value >= goal if self.at_least else value <= goal


def field(benchmark: str, name: str, **known: Any) -> Callable[[Rows], float | None]:
    """The field `name` of the first row of a benchmark that has these other fields."""

    def find(rows: Rows) -> float | None:
        for row in rows.get(benchmark, []):
            if all(row.get(key) == value for key, value in known.items()):
                return row.get(name)
        return None

    return find


def failed_tests(rows: Rows) -> float | None:
    """The kernel tests that failed; None where none ran to its end."""
    for row in rows.get("kernel_tests", []):
        if row["test"] == "all" and row["passed"] > 0 and row["exit_code"] in (0, 1):
            return row["failed"]
    return None


def largest_error(rows: Rows) -> float | None:
    """The largest relative error of a first pass, of output or gradients."""
    found = [row[name] for row in rows.get("first_step", []) for name in ("error", "gradient_error") if name in row]
    return max(found, default=None)


def idle(rows: Rows) -> float | None:
    """The share of a training step in which the GPU runs no kernel, which includes waiting for data."""
    busy = field("training_loop", "busy", run="as a stage runs")(rows)
    return None if busy is None else 1 - busy


def gigabytes(benchmark: str, what: str) -> Callable[[Rows], float | None]:
    """The peak under the limit of memory that a row names, in GB; infinite where it ran out of memory."""

    def find(rows: Rows) -> float | None:
        for row in rows.get(benchmark, []):
            if row["what"] == what and row["limit_bytes"]:
                if row["problem"] == "out of memory":
                    return float("inf")
                return row["peak_bytes"] and row["peak_bytes"] / 1e9
        return None

    return find


def largest_difference(rows: Rows) -> float | None:
    """The largest relative difference of a held-out loss between GPU and CPU."""
    found = [row["heldout_loss_difference"] for row in rows.get("stages", []) if "heldout_loss_difference" in row]
    return max(found, default=None)


def _network(benchmark: str, pixels: int, task: str, side: str, goal: float) -> Goal:
    figure = f"network at 1.6B, {pixels} pixels: {task}, times as fast as {side}"
    return Goal(figure, field(benchmark, "times", pixels=pixels, task=task, side=side), goal)


FILLED = field("training_loop", "samples_per_s", run="memory filled")

GOALS = (
    Goal("first passes in bfloat16: largest relative error", largest_error, 0.05, at_least=False, form=".3f"),
    Goal("kernel tests that fail", failed_tests, 0, at_least=False, form=".0f"),
    *(
        goal
        for dtype in ("bfloat16", "float32")
        for goal in (
            Goal(
                f"CAME-8bit step, {dtype}: share of a copy's bandwidth, by the bytes of its passes",
                field("optimizer_step", "of_copy_by_passes", optimizer="came8bit", dtype=dtype),
                0.7,
            ),
            Goal(
                f"the kernels of its passes alone, {dtype}: the same share",
                field("optimizer_step", "of_copy", dtype=dtype, **{"pass": "all"}),
            ),
        )
    ),
    *(
        _network("network", pixels, task, "diffusers", 1.5)
        for pixels in (512, 1024)
        for task in ("training step", "sampling")
    ),
    Goal("training loop at 1.6B: MFU", field("training_loop", "mfu", run="as a stage runs"), 0.43),
    Goal("training loop at 1.6B: MFU, the stretch", field("training_loop", "mfu", run="as a stage runs"), 0.5),
    *(
        Goal(f"training loop at 1.6B: {figure}", field("training_loop", name, run="as a stage runs"), form=form)
        for figure, name, form in (
            ("samples a second", "samples_per_s", ".1f"),
            ("host synchronisations a step", "synchronisations", ".0f"),
        )
    ),
    Goal(
        "training loop at 1.6B: share of time the GPU waits for data",
        field("training_loop", "waits_for_data", run="as a stage runs"),
        0.05,
        at_least=False,
    ),
    Goal(
        "training loop at 1.6B: share of a step in which the GPU is idle",
        idle,
        0.05,
        at_least=False,
    ),
    Goal("the same with all new memory filled: samples a second", FILLED, form=".1f"),
    Goal("4.8B training step, peak GB", gigabytes("training_memory", "step"), 24, at_least=False, form=".1f"),
    Goal("4.8B evaluation, peak GB", gigabytes("training_memory", "evaluation"), 24, at_least=False, form=".1f"),
    Goal(
        "4.8B stage, evaluation included, peak GB",
        gigabytes("stage_memory", "4.8B stage"),
        24,
        at_least=False,
        form=".1f",
    ),
    Goal(
        "train of profile paper, evaluation included, peak GB",
        gigabytes("stage_memory", "train of paper"),
        80,
        at_least=False,
        form=".1f",
    ),
    Goal(
        "checkpoint of the 1.6B beside its training: stall, as a multiple of the copy",
        field("checkpoint_stall", "stall_of_copy"),
        1,
        at_least=False,
    ),
    Goal("smoke stages: largest relative difference of a held-out loss from the CPU's", largest_difference, form=".4f"),
    *(
        _network("network_compiled", pixels, task, "diffusers, compiled", 1.15)
        for pixels in (512, 1024)
        for task in ("training step", "sampling")
    ),
)


def read_rows(folder: Path, device: str) -> Rows:
    """The rows of all result files of a device in a folder. `gpu.py`'s own has those of its parts too."""
    rows: Rows = {}
    day = folder / f"gpu-{device}.json"
    for outcome in json.loads(day.read_text(encoding="utf-8"))["rows"] if day.exists() else []:
        rows[outcome["part"]] = outcome["rows"]
    for path in sorted(folder.glob(f"*-{device}.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows[content["benchmark"]] = content["rows"]
    return rows


def table(folder: Path, device: str) -> str:
    """Every figure with its goal and whether it was reached, as Markdown."""
    rows = read_rows(folder, device)
    lines = [goal.line(rows) for goal in GOALS]
    return "\n".join(["| figure | measured | goal | reached |", "|---|---|---|---|", *lines])
