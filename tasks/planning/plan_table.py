"""The plan as a table, printed by `rich`: with colours on a terminal, plain if the output is piped."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.planning.cost_plan import Plan
from tasks.planning.cost_row import Cost
from tasks.system.readable_digits import BYTES, COUNTS, FLOPS, NOTHING, scaled, three_digits

WIDTH = 140
COLUMNS = (
    "stage",
    "parameters",
    "weights",
    "EMA",
    "gradients",
    "optimizer",
    "activations",
    "memory",
    "FLOPs",
    "GPU-hours",
    "outputs",
    "state",
)


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the table and its notes."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    # On a narrow terminal the lines break. Otherwise rich would cut figures short.
    console.print(plan_table(plan), width=max(console.width, WIDTH), crop=False, no_wrap=True, overflow="ignore")
    notes = Table.grid(padding=(0, 1))
    for number, note in enumerate(plan.notes, 1):
        notes.add_row(f"{number}.", Text(note))
    console.print(notes)


def plan_table(plan: Plan) -> Table:
    """A row for each stage and a row of totals: sums, but of memory and state the most of any stage."""
    table = Table(title=plan.title, title_justify="left", title_style="bold", header_style="bold cyan", box=None)
    table.pad_edge = False
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for cost in plan.costs:
        table.add_row(*_cells(cost, plan.hours(cost.flops)))
    table.add_row(*_total(plan), style="bold")
    table.add_row()
    return table


def _cells(cost: Cost, hours: float) -> list[str]:
    memory = cost.memory
    held = (memory.weights, memory.ema, memory.gradients, memory.optimizer, memory.activations, memory.total)
    return [
        cost.stage,
        scaled(cost.parameters, COUNTS),
        *(scaled(value, BYTES) for value in held),
        scaled(cost.flops, FLOPS),
        hours_text(hours),
        scaled(cost.outputs, BYTES),
        scaled(cost.state, BYTES),
    ]


def _total(plan: Plan) -> list[str]:
    total = plan.total
    return [
        "total",
        *[""] * 6,
        scaled(total.memory, BYTES),
        scaled(total.flops, FLOPS),
        hours_text(total.gpu_hours),
        scaled(total.outputs, BYTES),
        scaled(total.state, BYTES),
    ]


def hours_text(hours: float) -> str:
    """Hours to three digits, or `<0.01`. A dash stands for 0."""
    if hours == 0:
        return NOTHING
    return "<0.01" if hours < 0.005 else three_digits(hours)
