"""The report's figures. A function `draw_...` fills the axes that it is given. The others make a whole figure.

Models and cuts are records of `tasks.reporting.report_numbers.collect`. Bands and error bars are 95 % intervals. A
`width` in inches below that of a screen stacks what stands side by side there, so that its text stays readable.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tasks.reporting.figure_style import (
    EDGE,
    FINETUNED,
    GROUND,
    GROWN,
    ORACLE,
    PRUNED,
    QUIET,
    RIGHT,
    SCRATCH,
    SFT,
    SMALL,
    WIDE,
    colours,
    legend_below,
)
from tasks.reporting.headline_measure import Measure
from tasks.reporting.loss_curves import Curve
from tasks.reporting.report_numbers import Record

CHOOSER_STYLES: dict[str, dict[str, Any]] = {
    "oracle": {"label": "oracle (the scorer itself)", "color": ORACLE, "linestyle": "--"},
    "best_of": {"label": "judge", "color": GROWN},
    "shuffled": {"label": "judge asked about another prompt", "color": PRUNED, "linestyle": ":"},
    "random": {"label": "blind choice", "color": SMALL, "linestyle": "-."},
}
FAMILY_KINDS = (
    ("small", "small", SMALL, "D", -0.024),
    ("pruned", "cut", PRUNED, "o", -0.012),
    ("finetuned", "cut and fine-tuned", FINETUNED, "o", 0.012),
    ("grown", "grown", GROWN, "s", 0.0),
    ("sft", "on chosen pairs", SFT, "^", 0.024),
    ("scratch", "from scratch", SCRATCH, "v", 0.012),
)
"""Kinds of models: the beginning of their names, label, colour, marker, and a shift to the right.

The shift, in shares of the grown model's parameters, sets points of equally large models apart.
"""
LEAST_GAP = 0.07
"""The least distance of two depths on the upper axis, as a share of its length. Closer ones are left out."""


@dataclass(frozen=True)
class Level:
    """A score that all models are compared with, drawn as a horizontal line: the ceiling or the floor."""

    label: str
    value: float
    colour: str


def levels(summary: Record) -> list[Level]:
    """The score of real held-out pictures, and that of captions of other pictures or else of decoded noise."""
    scorer = summary.get("scorer") or {}
    ceiling, floor = scorer.get("ceiling"), scorer.get("shuffled")
    found = [Level("real pictures", ceiling["overall"], RIGHT)] if ceiling else []
    if floor:
        return [*found, Level("shuffled captions", floor["overall"], EDGE)]
    return [*found, Level("decoded noise", summary["controls"]["noise"]["overall"], EDGE)]


def loss_curves(curves: Sequence[Curve], width: float = WIDE) -> Figure:
    """Losses against samples: first the small model and then the grown model, beside or below them the fine-tunes.

    Models that were trained from scratch are drawn with the training of the small and the grown model.
    Held-out losses of `sft-` models are of their own data set, so they are drawn with broken lines.
    """
    side_by_side = width == WIDE
    figure = Figure(figsize=(width, 3.8 if side_by_side else 7.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1)) if side_by_side else figure.subplots(2, 1)
    small, grown, *others = curves
    shades = colours([curve.name for curve in curves])
    draw_training(left, small, grown)
    scratches = [curve for curve in others if curve.name.startswith("scratch-")]
    for curve in scratches:
        _draw_curve(left, curve, shades[curve.name], 0.0, training=False)
    legend_below(left, 4 if side_by_side else 2)
    for curve in (other for other in others if other not in scratches):
        line = "--" if curve.name.startswith("sft-") else "-"
        _draw_curve(right, curve, shades[curve.name], 0.0, training=False, line=line)
    right.axhline(grown.heldout[-1][1], color=GROWN, linestyle="--", linewidth=1, label="grown")
    right.set(title="Fine-tuning after the cut, held-out", xlabel="thousand samples")
    legend_below(right, 2)
    return figure


def draw_training(axes: Axes, small: Curve, grown: Curve) -> None:
    """The training of the small model, and then that of the grown model."""
    _draw_curve(axes, small, SMALL, 0.0)
    _draw_curve(axes, grown, GROWN, small.samples)
    axes.axvline(small.samples / 1000, color=QUIET, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5, 7)), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(title="Training", xlabel="thousand samples, the growth at the line", ylabel="flow-matching loss")


def _draw_curve(axes: Axes, curve: Curve, colour: str, offset: float, training: bool = True, line: str = "-") -> None:
    if training and curve.training:  # a model that was taken over as it is has no training losses
        samples, losses = zip(*curve.training, strict=True)
        x = [(offset + value) / 1000 for value in samples]
        axes.plot(x, losses, color=colour, alpha=0.35, linewidth=0.9, label=f"{curve.name}, training")
    samples, losses = zip(*curve.heldout, strict=True)
    x = [(offset + value) / 1000 for value in samples]
    label = f"{curve.name}, held-out" if training else curve.name
    axes.plot(x, losses, color=colour, linestyle=line, linewidth=1.8, marker="o", markersize=3.5, label=label)


def family(models: Sequence[Record], measure: Measure, compared: Sequence[Level] = (), width: float = WIDE) -> Figure:
    """The measure against parameters."""
    figure = Figure(figsize=(min(width, WIDE / 2), 4.0), layout="constrained")
    axes = figure.subplots()
    draw_family(axes, models, measure, compared)
    legend_below(axes, 2)
    return figure


def draw_family(axes: Axes, models: Sequence[Record], measure: Measure, compared: Sequence[Level] = ()) -> None:
    """The measure against parameters: the models cut from the grown model, before and after fine-tuning.

    Pruned and fine-tuned models of one depth have equally many parameters, and so has a small model of that depth. They
    are drawn a little apart. The upper axis has the depths. Scores stand between the lines `compared`.
    """
    end = next(model for model in models if model["name"] == "grown")
    end_value, _, _ = measure.interval(end)
    for kind, label, colour, marker, shift in FAMILY_KINDS:
        chosen = [model for model in models if model["name"].partition("-")[0] == kind]
        if not chosen or (kind == "sft" and not measure.is_score):  # its held-out loss is of other pictures
            continue
        chosen.sort(key=lambda model: model["parameters"])
        x = [(model["parameters"] + shift * end["parameters"]) / 1e6 for model in chosen]
        y = [measure.interval(model)[0] for model in chosen]
        bars = _bars(chosen, measure)
        axes.errorbar(x, y, bars, color=colour, marker=marker, linestyle="", capsize=2.5, label=label)
        if kind in ("pruned", "finetuned"):
            axes.plot([*x, end["parameters"] / 1e6], [*y, end_value], color=colour, alpha=0.5)
    axes.set(xlabel="million parameters", ylabel=measure.label)
    axes.set_xlim(0, 1.13 * end["parameters"] / 1e6)
    if measure.is_score:
        for level in compared:
            axes.axhline(level.value, color=level.colour, linestyle="--", linewidth=1.2, label=level.label, zorder=1)
        axes.set_ylim(bottom=0)
    _draw_depths(axes, models)


def _draw_depths(axes: Axes, models: Sequence[Record]) -> None:
    """An upper axis with the number of blocks at each size. A depth too close to the one before it is left out."""
    places = {model["parameters"] / 1e6: model["depth"] for model in models}
    length = axes.get_xlim()[1]
    kept: list[float] = []
    for place in sorted(places, reverse=True):  # the grown model's depth, the largest, is always there
        if not kept or kept[-1] - place >= LEAST_GAP * length:
            kept.append(place)
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(kept, [f"{places[place]}" for place in kept])
    upper.set_xlabel("blocks")
    upper.spines["top"].set_visible(False)


def _bars(models: Iterable[Record], measure: Measure) -> list[list[float]]:
    """The lengths of the error bars below and above each number."""
    found = [measure.interval(model) for model in models]
    return [[value - low for value, low, _ in found], [high - value for value, _, high in found]]


def best_of_n(models: Sequence[Record], score_name: str, width: float = WIDE) -> Figure:
    """Best of N with the judge, for all models but those just cut."""
    figure = Figure(figsize=(min(width, WIDE / 2), 4.0), layout="constrained")
    axes = figure.subplots()
    draw_best_of_n(axes, models, score_name)
    legend_below(axes, 3 if width == WIDE else 2)
    return figure


def draw_best_of_n(axes: Axes, models: Sequence[Record], score_name: str) -> None:
    """The score against N, the number of pictures from which the judge chooses."""
    shades = colours([model["name"] for model in models])
    for model in unpruned(models):
        name = model["name"]
        _draw_against_n(axes, model["best_of"], {"color": shades[name], "label": name})
    axes.set(xlabel="N pictures that the judge chooses from", ylabel=score_name)
    axes.set_ylim(bottom=0)


def unpruned(models: Sequence[Record]) -> list[Record]:
    """The models whose inference is scaled: all but those that are cut and not yet fine-tuned."""
    return [model for model in models if not model["name"].startswith("pruned-")]


def choosers(models: Sequence[Record], score_name: str, width: float = WIDE) -> Figure:
    """The judge's choice beside the oracle, a blind choice, and the judge asked about another prompt."""
    chosen = unpruned(models)
    columns = min(len(chosen), 5 if width == WIDE else 2)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(width, 0.9 + 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, model in zip(grid.flat, chosen, strict=False):
        for chooser, style in CHOOSER_STYLES.items():
            if model[chooser]:  # empty for the shuffled control if it was not asked for
                _draw_against_n(axes, model[chooser], style)
        axes.set(title=model["name"], xlabel="N")
        axes.set_ylim(bottom=0)
    for axes in grid[:, 0]:
        axes.set_ylabel(score_name)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(CHOOSER_STYLES) if width == WIDE else 1)
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


def block_importance(importance: Record, cuts: Sequence[Record], width: float = WIDE) -> Figure:
    """The importance of each block, how it differs between noise levels, and the blocks that each cut removed."""
    blocks = range(len(importance["mean"]))
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    means, levels, removed = figure.subplots(3, 1, sharex=True, height_ratios=(2.4, 2, 0.35 * len(cuts) + 0.2))
    means.errorbar(blocks, importance["mean"], importance["std"], color=GROWN, marker="o", linestyle="", capsize=3)
    means.set_yscale("log")
    spread = "mean and spread over noise levels"
    title = f"Importance of each block: {spread}" if width == WIDE else f"Importance of each block:\n{spread}"
    means.set(title=title, ylabel="1 − cosine")
    edges = [block - 0.5 for block in range(len(blocks) + 1)]
    rows = range(len(importance["times"]) + 1)
    mesh = levels.pcolormesh(
        edges, rows, importance["scores"], norm="log", cmap="GnBu", edgecolors=GROUND, linewidth=0.5
    )
    levels.set_yticks([row + 0.5 for row in rows[:-1]], [f"{time:g}" for time in importance["times"]])
    levels.set(title="At each noise level", ylabel="noise level σ")
    figure.colorbar(mesh, ax=levels, pad=0.01)
    _draw_removed(removed, len(blocks), cuts, min(9.0, 52 * width / len(blocks)))
    removed.xaxis.set_major_locator(MaxNLocator(20 if width == WIDE else 8, integer=True))
    return figure


def _draw_removed(axes: Axes, blocks: int, cuts: Sequence[Record], size: float) -> None:
    """The blocks of each cut. `size` is that of a mark in points, which must not be wider than a block."""
    for row, cut in enumerate(cuts):
        for block in range(blocks):
            gone = block in cut["removed"]
            axes.barh(row, 0.86, 0.8, left=block - 0.43, color=PRUNED if gone else QUIET)
            if gone:
                axes.text(block, row, "×", ha="center", va="center", color=GROUND, weight="bold", fontsize=size)
    axes.set(title="Removed blocks (×) of each cut", xlabel="block")
    axes.set_yticks(range(len(cuts)), [f"{cut['depth']} kept" for cut in cuts])
    axes.invert_yaxis()
    axes.grid(False)


def costs_figure(stages: Sequence[Record], width: float = WIDE) -> Figure:
    """The seconds and the peak memory of each stage."""
    height, side_by_side = 0.6 + 0.24 * len(stages), width == WIDE
    figure = Figure(figsize=(width, height if side_by_side else 2 * height), layout="constrained")
    across, down = (2, 1) if side_by_side else (1, 2)
    seconds, memory = figure.subplots(down, across, sharey=True).flat
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
    axes.margins(x=0.18)
    axes.grid(False, axis="y")
