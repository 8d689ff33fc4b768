"""The plot of a sweep: score against the number of parameters."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from flows.sweeps.sweep_table import ScoredSetting
from tasks.evaluation.scorer_labels import SCORER_LABELS
from tasks.reporting.figure_style import CHOSEN, GROWN, QUIET, STYLE, legend_below, png, settle

DPI = 110


def draw(title: str, settings: Sequence[ScoredSetting]) -> bytes:
    """A PNG of all settings with their intervals. The best setting and the Pareto set are marked."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        axes = figure.subplots()
        scorer = SCORER_LABELS[settings[0].scorer] if settings else "score"
        for pareto, colour, label in ((False, QUIET, "other"), (True, GROWN, "Pareto set")):
            chosen = [one for one in settings if one.pareto == pareto]
            x, y = [one.parameters / 1e6 for one in chosen], [one.score for one in chosen]
            bars = [[max(one.score - one.low, 0) for one in chosen], [max(one.high - one.score, 0) for one in chosen]]
            axes.errorbar(x, y, bars, color=colour, marker="o", linestyle="", capsize=2.5, label=label)
        for one in settings:
            place = one.parameters / 1e6, one.score
            if one.best:
                axes.plot(
                    *place, marker="o", markersize=12, markerfacecolor="none", color=CHOSEN, linestyle="", label="best"
                )
            if one.pareto:
                axes.annotate(_named(one), place, (6, -4), textcoords="offset points", fontsize=7, va="top")
        axes.set(title=title, xlabel="million parameters", ylabel=scorer)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.12)
        legend_below(axes, 3)
        return png(settle(figure), DPI)


def _named(one: ScoredSetting) -> str:
    """The setting's label on two lines. On one line it would run into the label of the next setting."""
    model = f"{one.model}, best of {one.pictures}" if one.pictures > 1 else one.model
    return "\n".join(filter(None, (one.label, model)))
