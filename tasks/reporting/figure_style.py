"""The look of the report's figures, and their files: the same figure always gives the same bytes of SVG and PNG."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b93a7",
    "axes.labelcolor": "#3b4358",
    "xtick.color": "#5b6378",
    "ytick.color": "#5b6378",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9f0",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "sana15",  # without it the ids of an SVG's parts are random
    "svg.fonttype": "path",
}

SMALL, GROWN, PRUNED, FINETUNED = "#8d99ae", "#22304f", "#e8743b", "#138f86"
RIGHT, CHOSEN, QUIET = "#2f9e58", "#2f6fdb", "#cfd5e1"
DEPTHS = LinearSegmentedColormap.from_list("depths", ["#b3cf4a", FINETUNED, "#2458a6"])


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each model. Those of fine-tuned models go from green to blue with their depth."""
    chosen = {"small": SMALL, "grown": GROWN}
    finetuned = sorted((name for name in names if name.startswith("finetuned-")), key=depth_of)
    for rank, name in enumerate(finetuned):
        chosen[name] = to_hex(DEPTHS((rank + 1) / (len(finetuned) + 1)))
    return {name: chosen.get(name, PRUNED) for name in names}


def depth_of(name: str) -> int:
    """The depth in the name of a cut model: 8 of `pruned-8`."""
    return int(name.partition("-")[2])


def legend_below(axes: Axes, columns: int) -> None:
    """A legend under the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)


def settle(figure: Figure) -> Figure:
    """The figure with its layout rounded to a millionth.

    The last digits of matplotlib's layout solver vary from run to run, and with them the ids in the SVG.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(np.round(axes.get_position().get_points(), 6)))
    return figure


def svg(figure: Figure) -> bytes:
    """A settled figure as SVG without a date."""
    return _saved(figure, format="svg", metadata={"Date": None})


def png(figure: Figure, dpi: int) -> bytes:
    """A settled figure as PNG without the name of the software."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, **options: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()
