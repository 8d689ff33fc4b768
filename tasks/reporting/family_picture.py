"""The picture that stands for the whole experiment: samples of the family, GenEval against parameters and against N."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from tasks.evaluation.best_of_n import select
from tasks.evaluation.picture_pool import Pool
from tasks.reporting.figure_style import QUIET, RIGHT
from tasks.reporting.report_figures import draw_best_of_n, draw_family
from tasks.reporting.report_numbers import Record
from tasks.reporting.sample_strips import Pixels

PREFIX = "a photo of "


def headline(models: Sequence[Record], pools: Mapping[str, Pool], prompts: Sequence[int]) -> Figure:
    """Samples on the left, with a row for each prompt and a column for each model; the two curves on the right.

    A column shows a model's first picture of each prompt, so all models start from the same noise. The last column
    shows the pictures that the judge chooses from the grown model's whole pool. Pictures that the scorer finds right
    have a green frame.
    """
    figure = Figure(figsize=(13.6, 5.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1), wspace=0.03)
    _draw_samples(left, pools, prompts)
    upper, lower = right.subplots(2, 1)
    draw_family(upper, models)
    upper.set_title("Cut to any size, fine-tuned briefly")
    upper.legend(loc="upper left")
    draw_best_of_n(lower, models)
    lower.set_title("More pictures to choose from")
    lower.legend(loc="lower right", ncols=2)
    return figure


def _draw_samples(figure: SubFigure, pools: Mapping[str, Pool], prompts: Sequence[int]) -> None:
    grown = pools["grown"]
    best = select(grown.judged_PN)
    columns = [(name.replace("-", "\n"), pool, [0] * len(best)) for name, pool in pools.items()]
    columns.append((f"grown,\nbest of {grown.correct_PN.shape[1]}", grown, best.tolist()))
    grid = figure.subplots(len(prompts), len(columns), squeeze=False)
    for row, prompt in zip(grid, prompts, strict=True):
        for axes, (_, pool, numbers) in zip(row, columns, strict=True):
            number = numbers[prompt]
            _show(axes, pool.pictures_PNHW3[prompt, number], bool(pool.correct_PN[prompt, number]))
        words = grown.prompts[prompt].text.removeprefix(PREFIX)
        row[0].set_ylabel(textwrap.fill(words, 18), rotation=0, ha="right", va="center", fontsize=9)
    for axes, (title, _, _) in zip(grid[0], columns, strict=True):
        axes.set_title(title, loc="center", fontsize=9, fontweight="normal")


def _show(axes: Axes, picture_HW3: Pixels, right: bool) -> None:
    axes.imshow(picture_HW3, interpolation="nearest" if len(picture_HW3) <= 64 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=RIGHT if right else QUIET, linewidth=2.2 if right else 0.8)
