"""The report's figures. A function `draw_...` fills the axes that it is given. The others make a whole figure.

Models and cuts are records of `tasks.reporting.report_numbers.collect`. Bands and error bars are 95 % bootstrap
intervals over prompts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from tasks.reporting.figure_style import FINETUNED, GROWN, PRUNED, QUIET, SMALL, colours, legend_below
from tasks.reporting.loss_curves import Curve
from tasks.reporting.report_numbers import Record

CHOOSER_STYLES: dict[str, dict[str, Any]] = {
    "oracle": {"label": "oracle (the scorer itself)", "color": "#b98b1d", "linestyle": "--"},
    "best_of": {"label": "judge", "color": GROWN},
    "shuffled": {"label": "judge asked about another prompt", "color": PRUNED, "linestyle": ":"},
    "random": {"label": "blind choice", "color": SMALL, "linestyle": "-."},
}
FAMILY_KINDS = (
    ("small", "small", SMALL, "D", -0.024),
    ("pruned", "cut", PRUNED, "o", -0.012),
    ("finetuned", "cut and fine-tuned", FINETUNED, "o", 0.012),
    ("grown", "grown", GROWN, "s", 0.0),
)
"""Kinds of models: the beginning of their names, label, colour, marker, and a shift to the right.

The shift, in shares of the grown model's parameters, sets points of equally large models apart.
"""


def loss_curves(curves: Sequence[Curve]) -> Figure:
    """Losses against samples: on the left the small model and then the grown model, on the right the fine-tunes."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    shades = colours([curve.name for curve in curves])
    small, grown, *finetunes = curves
    _draw_curve(left, small, shades["small"], 0.0)
    _draw_curve(left, grown, shades["grown"], small.samples)
    left.axvline(small.samples / 1000, color=QUIET, zorder=0)
    left.set_yscale("log")
    left.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5, 7)), minor_locator=NullLocator())
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.set(title="Training", xlabel="thousand samples, the growth at the line", ylabel="flow-matching loss")
    legend_below(left, 4)
    for curve in finetunes:
        _draw_curve(right, curve, shades[curve.name], 0.0, training=False)
    right.axhline(grown.heldout[-1][1], color=GROWN, linestyle="--", linewidth=1, label="grown")
    right.set(title="Fine-tuning after the cut, held-out", xlabel="thousand samples")
    legend_below(right, 2)
    return figure


def _draw_curve(axes: Axes, curve: Curve, colour: str, offset: float, training: bool = True) -> None:
    if training and curve.training:  # a model that was taken over as it is has no training losses
        samples, losses = zip(*curve.training, strict=True)
        x = [(offset + value) / 1000 for value in samples]
        axes.plot(x, losses, color=colour, alpha=0.35, linewidth=0.9, label=f"{curve.name}, training")
    samples, losses = zip(*curve.heldout, strict=True)
    x = [(offset + value) / 1000 for value in samples]
    label = f"{curve.name}, held-out" if training else curve.name
    axes.plot(x, losses, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)


def family(models: Sequence[Record]) -> Figure:
    """GenEval against parameters."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_family(axes, models)
    legend_below(axes, 4)
    return figure


def draw_family(axes: Axes, models: Sequence[Record]) -> None:
    """GenEval against parameters: the models cut from the grown model, before and after fine-tuning.

    Pruned and fine-tuned models of one depth have equally many parameters, and so has a small model of that depth. They
    are drawn a little apart.
    """
    end = next(model for model in models if model["name"] == "grown")
    for kind, label, colour, marker, shift in FAMILY_KINDS:
        chosen = [model for model in models if model["name"].partition("-")[0] == kind]
        chosen.sort(key=lambda model: model["parameters"])
        x = [(model["parameters"] + shift * end["parameters"]) / 1e6 for model in chosen]
        y = [model["score"]["overall"] for model in chosen]
        axes.errorbar(x, y, _bars(chosen), color=colour, marker=marker, linestyle="", capsize=2.5, label=label)
        if kind in ("pruned", "finetuned"):
            axes.plot([*x, end["parameters"] / 1e6], [*y, end["score"]["overall"]], color=colour, alpha=0.5)
        if kind in ("grown", "finetuned"):
            for *place, model in zip(x, y, chosen, strict=True):
                axes.annotate(f"{model['depth']} blocks", place, (6, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="million parameters", ylabel="GenEval, one picture")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.13 * end["parameters"] / 1e6)


def _bars(models: Iterable[Record]) -> list[list[float]]:
    """The lengths of the error bars below and above each score."""
    scores = [model["score"] for model in models]
    return [[s["overall"] - s["low"] for s in scores], [s["high"] - s["overall"] for s in scores]]


def best_of_n(models: Sequence[Record]) -> Figure:
    """Best of N with the judge, for all models but those just cut."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_best_of_n(axes, models)
    legend_below(axes, 3)
    return figure


def draw_best_of_n(axes: Axes, models: Sequence[Record]) -> None:
    """GenEval against N, the number of pictures from which the judge chooses."""
    shades = colours([model["name"] for model in models])
    for model in unpruned(models):
        name = model["name"]
        _draw_against_n(axes, model["best_of"], {"color": shades[name], "label": name})
    axes.set(xlabel="N pictures that the judge chooses from", ylabel="GenEval")
    axes.set_ylim(bottom=0)


def unpruned(models: Sequence[Record]) -> list[Record]:
    """The models whose inference is scaled: all but those that are cut and not yet fine-tuned."""
    return [model for model in models if not model["name"].startswith("pruned-")]


def choosers(models: Sequence[Record]) -> Figure:
    """The judge's choice beside the oracle, a blind choice, and the judge asked about another prompt."""
    chosen = unpruned(models)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    row = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, model in zip(row, chosen, strict=True):
        for chooser, style in CHOOSER_STYLES.items():
            if model[chooser]:  # empty for the shuffled control if it was not asked for
                _draw_against_n(axes, model[chooser], style)
        axes.set(title=model["name"], xlabel="N")
        axes.set_ylim(bottom=0)
    row[0].set_ylabel("GenEval")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CHOOSER_STYLES))
    return figure


def _draw_against_n(axes: Axes, curve: Record, style: dict[str, Any]) -> None:
    numbers = sorted(curve, key=int)
    x = [int(n) for n in numbers]
    overall, low, high = ([curve[n][key] for n in numbers] for key in ("overall", "low", "high"))
    axes.plot(x, overall, linewidth=1.8, marker="o", markersize=3.5, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    drawn = sorted(
        {n for line in axes.lines for n in line.get_xdata()}
    )  # ticks at the numbers of all curves, because some end earlier
    axes.xaxis.set(major_locator=FixedLocator(drawn), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))


def block_importance(importance: Record, cuts: Sequence[Record]) -> Figure:
    """The importance of each block, how it differs between noise levels, and the blocks that each cut removed."""
    blocks = range(len(importance["mean"]))
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    means, levels, removed = figure.subplots(3, 1, sharex=True, height_ratios=(2.4, 2, 0.35 * len(cuts) + 0.2))
    means.errorbar(blocks, importance["mean"], importance["std"], color=GROWN, marker="o", linestyle="", capsize=3)
    means.set_yscale("log")
    means.set(title="Importance of each block: mean and spread over noise levels", ylabel="1 − cosine")
    edges = [block - 0.5 for block in range(len(blocks) + 1)]
    rows = range(len(importance["times"]) + 1)
    mesh = levels.pcolormesh(
        edges, rows, importance["scores"], norm="log", cmap="GnBu", edgecolors="white", linewidth=0.5
    )
    levels.set_yticks([row + 0.5 for row in rows[:-1]], [f"{time:g}" for time in importance["times"]])
    levels.set(title="At each noise level", ylabel="noise level σ")
    figure.colorbar(mesh, ax=levels, pad=0.01)
    _draw_removed(removed, len(blocks), cuts)
    return figure


def _draw_removed(axes: Axes, blocks: int, cuts: Sequence[Record]) -> None:
    for row, cut in enumerate(cuts):
        for block in range(blocks):
            gone = block in cut["removed"]
            axes.barh(row, 0.86, 0.8, left=block - 0.43, color=PRUNED if gone else QUIET)
            if gone:
                axes.text(block, row, "×", ha="center", va="center", color="white", weight="bold")
    axes.set(title="Removed blocks (×) of each cut", xlabel="block", xticks=range(blocks))
    axes.set_yticks(range(len(cuts)), [f"{cut['depth']} kept" for cut in cuts])
    axes.invert_yaxis()
    axes.grid(False)


def costs_figure(stages: Sequence[Record]) -> Figure:
    """The seconds and the peak memory of each stage."""
    figure = Figure(figsize=(10, 0.6 + 0.24 * len(stages)), layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    names = [stage["name"] for stage in stages]
    total = sum(stage["seconds"] for stage in stages)
    _draw_bars(seconds, names, [stage["seconds"] for stage in stages], f"Seconds (sum {total:.0f})", FINETUNED)
    peaks = [stage["peak_memory_bytes"] / 2**30 for stage in stages]
    _draw_bars(memory, names, peaks, "Peak memory in GiB", GROWN)
    seconds.invert_yaxis()
    return figure


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[float], title: str, colour: str) -> None:
    axes.bar_label(axes.barh(names, values, color=colour, height=0.7), fmt="%.3g", padding=3, fontsize=8)
    axes.set_title(title)
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
