"""What a run's models are and how well they do, in words: the descriptions of runs in MLflow's UI, in markdown."""

from collections.abc import Mapping
from typing import Any

from flows.building.model_table import INTERVAL, best_in_a_line, brief_rows, too_short_to_learn

Record = Mapping[str, Any]


def model_sentence(model: Record) -> str:
    """One sentence on a record of `models` in `results/summary.json`: what the model is, and its main numbers."""
    (row,) = brief_rows({"models": [model]})
    numbers = [
        f"{column.removesuffix(INTERVAL)} {value}"
        for column, value in row.items()
        if column not in ("model", "blocks") and value
    ]
    return f"{what_it_is(model['name'], model['depth'])}: {', '.join(numbers)}."


def what_it_is(name: str, depth: int) -> str:
    """How the model `name` of `depth` blocks came about: `The grown model cut to 6 blocks and fine-tuned`."""
    if name.startswith("sft-"):
        before = what_it_is(name.removeprefix("sft-"), depth)
        return f"{before}, after supervised fine-tuning on chosen pictures"
    kind = name.partition("-")[0]
    return {
        "small": f"The small model of {depth} blocks, from which the grown model grows",
        "grown": f"The grown model of {depth} blocks",
        "pruned": f"The grown model cut to {depth} blocks and not trained since",
        "finetuned": f"The grown model cut to {depth} blocks and fine-tuned",
        "scratch": f"A model of {depth} blocks, trained from random weights for comparison",
    }[kind]


def models_in_markdown(summary: Record) -> str:
    """Which model of a summary is best, whether the run was too short to tell, and all models as a table."""
    rows, said = brief_rows(summary), [best_in_a_line(summary), too_short_to_learn(summary)]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join([" ".join(filter(None, said)), "", *(f"| {' | '.join(line)} |" for line in lines)])
