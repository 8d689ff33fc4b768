"""The picture that stands for the whole experiment: samples of the family, its measure against size, and best of N."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from tasks.evaluation.best_of_n import select
from tasks.evaluation.picture_pool import Pool
from tasks.reporting.figure_style import QUIET, RIGHT, legend_below
from tasks.reporting.headline_measure import Measure
from tasks.reporting.loss_curves import Curve
from tasks.reporting.report_figures import Level, draw_best_of_n, draw_family, draw_training
from tasks.reporting.report_numbers import Record
from tasks.reporting.sample_strips import Pixels

PREFIX = "a photo of "


@dataclass(frozen=True)
class Column:
    """One column of the samples: a name, and for each prompt a picture (H, W, 3) and whether the scorer accepts it."""

    name: str
    pictures: list[Pixels]
    right: list[bool]


def sample_columns(pools: Mapping[str, Pool], prompts: Sequence[int]) -> list[Column]:
    """The first picture of each prompt by each model, and the judge's choice among all that the grown model drew.

    All models start from the same noise.
    """
    grown = pools["grown"]
    best = select(grown.judged_PN).tolist()
    columns = [_column(name, pool, prompts, [0] * len(best)) for name, pool in pools.items()]
    return [*columns, _column(f"grown, best of {grown.correct_PN.shape[1]}", grown, prompts, best)]


def _column(name: str, pool: Pool, prompts: Sequence[int], numbers: Sequence[int]) -> Column:
    pictures = [pool.pictures_PNHW3[prompt, numbers[prompt]] for prompt in prompts]
    return Column(name, pictures, [bool(pool.correct_PN[prompt, numbers[prompt]]) for prompt in prompts])


def short_prompt(text: str) -> str:
    """A prompt without the words that all of GenEval's begin with."""
    return text.removeprefix(PREFIX)


def headline(
    models: Sequence[Record],
    columns: Sequence[Column],
    prompts: Sequence[str],
    measure: Measure,
    origin: Record,
    compared: Sequence[Level],
    curves: Sequence[Curve],
) -> Figure:
    """Samples on the left, with a row for each prompt and a column for each model; two curves on the right.

    Pictures that the scorer finds right have a green frame. The curves are the measure against parameters and best of
    N, or, if the run was too short for a score, the held-out loss against parameters and the loss in training. The last
    line says what was drawn and what scored it (`origin`), since the picture may be shown on its own.
    """
    figure = Figure(figsize=(13.6, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1), wspace=0.03)
    _draw_samples(left, columns, prompts)
    caption = f"{origin['pictures']}.\nScore: {origin['scorer']}."
    left.supxlabel(caption, x=0.01, ha="left", fontsize=8)
    upper, lower = right.subplots(2, 1)
    draw_family(upper, models, measure, compared)
    upper.set_title("Cut to any size, fine-tuned briefly")
    legend_below(upper, 3)
    if measure.is_score:
        draw_best_of_n(lower, models, origin["score_name"])
        lower.set_title("More pictures to choose from")
        lower.legend(loc="lower right", ncols=2)
    else:
        draw_training(lower, *curves[:2])
        lower.legend(loc="best", ncols=2)
    return figure


def _draw_samples(figure: SubFigure, columns: Sequence[Column], prompts: Sequence[str]) -> None:
    grid = figure.subplots(len(prompts), len(columns), squeeze=False)
    for axes_of_column, column in zip(grid.T, columns, strict=True):
        for axes, picture_HW3, right in zip(axes_of_column, column.pictures, column.right, strict=True):
            _show(axes, picture_HW3, right)
        title = column.name.replace("-", "\n").replace(", ", ",\n")
        axes_of_column[0].set_title(title, loc="center", fontsize=9, fontweight="normal")
    for row, text in zip(grid, prompts, strict=True):
        words = textwrap.fill(textwrap.shorten(short_prompt(text), 70, placeholder=" …"), 18)
        row[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=9)


def _show(axes: Axes, picture_HW3: Pixels, right: bool) -> None:
    axes.imshow(picture_HW3, interpolation="nearest" if len(picture_HW3) <= 64 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=RIGHT if right else QUIET, linewidth=2.2 if right else 0.8)
