"""The look of the report's figures, and their files: the same figure always gives the same bytes of SVG and PNG.

A figure is drawn in the colours of a light page. In an SVG that the page holds, each of these colours is a variable of
the page, which has a second value on a dark page. A PNG keeps the light colours on white.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, ScaledTranslation

WIDE, NARROW = 10.0, 3.5
"""Inches of a figure that fills the page, on a screen and on a phone. An inch is 96 pixels there."""

SMALL, GROWN, PRUNED, FINETUNED = "#8d99ae", "#22304f", "#e8743b", "#138f86"
SFT, DARK_SFT = "#7d4fb5", "#b290e8"
SCRATCH = "#a0522d"
RIGHT, CHOSEN, QUIET, ORACLE = "#2f9e58", "#2f6fdb", "#cfd5e1", "#b98b1d"
TEXT, TICKS, EDGE, GRID, GROUND = "#3b4358", "#5b6378", "#8b93a7", "#e6e9f0", "#ffffff"
DARK = {
    SMALL: "#98a4ba",
    GROWN: "#d5def2",
    PRUNED: "#f08a55",
    FINETUNED: "#2cb8ad",
    SCRATCH: "#d99a6c",
    RIGHT: "#45c07a",
    CHOSEN: "#6b9df2",
    QUIET: "#465170",
    ORACLE: "#d9ae45",
    TEXT: "#c6cee0",
    TICKS: "#a3adc4",
    EDGE: "#66718c",
    GRID: "#2b3449",
    GROUND: "#171d2d",
}
"""The colour on a dark page for each colour on a light one."""

DEPTHS = LinearSegmentedColormap.from_list("depths", ["#b3cf4a", FINETUNED, "#2458a6"])
DARK_DEPTHS = LinearSegmentedColormap.from_list("dark depths", ["#cbe466", DARK[FINETUNED], "#6aa0f5"])

SFTS = LinearSegmentedColormap.from_list("sft", [SFT, "#b5305c"])
DARK_SFTS = LinearSegmentedColormap.from_list("dark sft", [DARK_SFT, "#f07a9e"])

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": GROWN,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": TEXT,
    "xtick.color": TICKS,
    "ytick.color": TICKS,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": GROUND,
    "svg.hashsalt": "sana15",  # without it the ids of an SVG's parts are random
    "svg.fonttype": "path",
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each model.

    Those of fine-tuned models go from green to blue with their depth, and those of `sft-` models from violet to red.
    """
    scratch = {name: SCRATCH for name in names if name.startswith("scratch-")}
    chosen = {"small": SMALL, "grown": GROWN} | _depth_colours(names, DEPTHS) | _sft_colours(names, SFTS) | scratch
    return {name: chosen.get(name, PRUNED) for name in names}


def dark_colours(names: Sequence[str]) -> dict[str, str]:
    """For each colour of a figure of these models on a light page, the colour on a dark page."""
    light = _depth_colours(names, DEPTHS) | _sft_colours(names, SFTS)
    dark = _depth_colours(names, DARK_DEPTHS) | _sft_colours(names, DARK_SFTS)
    return DARK | {light[name]: dark[name] for name in light}


def _depth_colours(names: Sequence[str], ramp: LinearSegmentedColormap) -> dict[str, str]:
    finetuned = sorted((name for name in names if name.startswith("finetuned-")), key=depth_of)
    return {name: to_hex(ramp((rank + 1) / (len(finetuned) + 1))) for rank, name in enumerate(finetuned)}


def _sft_colours(names: Sequence[str], ramp: LinearSegmentedColormap) -> dict[str, str]:
    chosen = [name for name in names if name.startswith("sft-")]
    return {name: to_hex(ramp(rank / len(chosen))) for rank, name in enumerate(chosen)}


def depth_of(name: str) -> int:
    """The depth in the name of a cut model: 8 of `pruned-8`."""
    return int(name.partition("-")[2])


def legend_below(axes: Axes, columns: int) -> None:
    """A legend under the axes and their label, where it hides nothing."""
    below = axes.transAxes + ScaledTranslation(0, -32 / 72, axes.get_figure(root=True).dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0}
    axes.legend(*_points_before_lines(axes), ncols=columns, **place)


def _points_before_lines(axes: Axes) -> tuple[list[Artist], list[str]]:
    """The handles and labels of a legend. Points with error bars come before lines, unlike in matplotlib's order."""
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: isinstance(entry[0], Line2D)
    )
    return [handle for handle, _ in entries], [label for _, label in entries]


def settle(figure: Figure) -> Figure:
    """The figure with its layout rounded to a millionth.

    The last digits of matplotlib's layout solver vary from run to run, and with them the ids in the SVG.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(np.round(axes.get_position().get_points(), 6)))
    return figure


def svg(figure: Figure, name: str, dark: Mapping[str, str]) -> str:
    """A settled figure as an `<svg>` element for a page, without a ground, a date, and a size.

    Every id begins with `name`, so that several figures stand in one page. The colours that `dark` names become
    variables of the page (`variable`).
    """
    text = _saved(figure, format="svg", metadata={"Date": None}, transparent=True).decode()
    element = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, rest = element.split(">", maxsplit=1)
    element = re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    return re.sub(r"#[0-9a-f]{6}\b(?=[;\"])", lambda found: _page_colour(found[0], dark), element)


def variable(colour: str) -> str:
    """The name of the page's variable for a colour of a figure: `--c22304f` for `#22304f`."""
    return f"--c{colour.removeprefix('#')}"


def _page_colour(colour: str, dark: Mapping[str, str]) -> str:
    return f"var({variable(colour)})" if colour in dark else colour


def png(figure: Figure, dpi: int) -> bytes:
    """A settled figure as PNG without the name of the software."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, **options: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()
