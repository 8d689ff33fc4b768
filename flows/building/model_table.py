"""The table of models that a run ends with, for people: on the terminal, and in Prefect's and MLflow's UI.

A record is one of `models` in `results/summary.json`. What a record lacks is left out of its row.
"""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.evaluation.scorer_labels import SCORER_LABELS
from tasks.reporting.best_model import MARK, Best, best_in_words, best_model
from tasks.reporting.learned import has_learned
from tasks.system.readable_digits import COUNTS, scaled, three_significant_digits

Record = Mapping[str, Any]
BEST_OF = "best of "
INTERVAL = " [95 %]"
PIPED_WIDTH = 140
"""The width in characters of what is printed where the output is no terminal."""
WIDEST = 1000
"""More characters than the table needs, whose own width is asked for."""


def model_rows(summary: Record) -> list[dict[str, str]]:
    """A row for each model, in readable digits. All rows have the same columns; a cell may be empty.

    A star marks the best score, or the best held-out loss if the run was too short for its scores to mean anything.
    """
    best = best_model(summary)
    rows = [_row(model, best) for model in summary["models"]]
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def brief_rows(summary: Record) -> list[dict[str, str]]:
    """Fewer columns of `model_rows` for a narrow page, those by which one chooses a model first.

    Of the best of N, only the largest N is shown.
    """
    rows = model_rows(summary)
    best = [column for column in rows[0] if column.startswith(BEST_OF)]
    largest = sorted(best, key=lambda column: int(column.removeprefix(BEST_OF)))[-1:]
    scores = [column for column in rows[0] if column.endswith(INTERVAL)]
    chosen = ["model", *scores, *largest, "parameters", "seconds a picture", "blocks", "held-out loss"]
    return [{column: row[column] for column in chosen if column in row} for row in rows]


def print_models(summary: Record, report: str, console: Console | None = None) -> None:
    """Print a summary's models, which of them is best, whether the run was too short, and where the report is."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    rows = model_rows(summary)
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console.print()
    # On a narrow terminal the lines break. Otherwise rich would cut figures short.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table, no_wrap=True)
    for line in (best_in_a_line(summary), too_short_to_learn(summary), f"report: {report}"):
        if line:
            console.print(line, markup=False, soft_wrap=True)


def best_in_a_line(summary: Record) -> str:
    """Which model is best, and which others the intervals do not tell from it; empty if there is nothing to compare."""
    best = best_model(summary)
    return best_in_words(best, SCORER_LABELS[summary["models"][0]["scorer"]]) if best else ""


def too_short_to_learn(summary: Record) -> str:
    """A sentence that says so if the grown model's score cannot be told from the score of noise; otherwise empty."""
    if has_learned(summary):
        return ""
    grown, noise = next(model for model in summary["models"] if model["name"] == "grown"), summary["controls"]["noise"]
    label = SCORER_LABELS[grown["scorer"]]
    return (
        f"{label} cannot tell the grown model from noise ({_interval(grown['score'])} and {_interval(noise)}): "
        "this run was too short for its scores to mean anything. Compare held-out losses instead."
    )


def _row(model: Record, best: Best | None) -> dict[str, str]:
    is_best = best is not None and model["name"] in best.names
    score_mark, loss_mark = (f"{MARK} " * (is_best and best.by_score == by_score) for by_score in (True, False))
    row = {
        "model": model["name"],
        "blocks": str(model["depth"]),
        "parameters": scaled(model["parameters"], COUNTS),
        "held-out loss": f"{loss_mark}{model['heldout_loss']:.3f}",
        f"{SCORER_LABELS[model['scorer']]}{INTERVAL}": score_mark + _interval(model["score"]),
    }
    row |= {f"{BEST_OF}{n}": f"{best['overall']:.3f}" for n, best in model.get("best_of", {}).items() if n != "1"}
    if (distance := model.get("distance")) is not None:
        row["distance"] = three_significant_digits(distance["value"])
    if (clip := model.get("clip_score")) is not None:
        row["CLIP score"] = three_significant_digits(clip["value"] if isinstance(clip, Mapping) else clip)
    if (seconds := model.get("seconds_per_picture")) is not None:
        row["seconds a picture"] = three_significant_digits(seconds)
    return row


def _interval(score: Record) -> str:
    return f"{score['overall']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
