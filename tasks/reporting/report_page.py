"""The page `report.html`: one file with no script, which needs no other file and no network."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.reporting.figure_style import variable
from tasks.reporting.learned import has_learned
from tasks.reporting.report_numbers import Record

TEMPLATE = "report_page.html.j2"
MISSING = "–"
PNG = "image/png"


@dataclass(frozen=True)
class FigureOnPage:
    """A figure as two SVG elements: one for a screen, and one whose text is readable on a phone."""

    wide: str
    narrow: str


@dataclass(frozen=True)
class Page:
    """What the page shows beside numbers.

    `figures` has the figures by name, and `dark_colours` the colour on a dark page for each of their colours. `family`
    has the `names` of models and `rows` of a prompt's `text` and its `pictures` (PNG, and whether the scorer accepts
    it). `samples` has for each prompt its `text`, `task`, whether it was `seen`, and `rows` of (model, PNG strip).
    `reconstructions` is a PNG of held-out pictures, with the autoencoder's reconstructions below them.
    """

    figures: Mapping[str, FigureOnPage]
    dark_colours: Mapping[str, str]
    family: Record
    samples: list[Record]
    reconstructions: bytes


def render_page(summary: Record, origin: Record, page: Page) -> str:
    """The page of a summary; `origin` has the words of its head (`tasks.reporting.report_origin`)."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval, "percent": percent, "millions": millions}
    environment.filters |= {"png": lambda data: data_uri(data, PNG), "variable": variable, "task": task_in_words}
    environment.filters |= {"heldout": heldout, "seconds": seconds_per_picture}
    return environment.get_template(TEMPLATE).render(**summary_with_defaults(summary), origin=origin, page=page)


def summary_with_defaults(summary: Record) -> dict[str, Any]:
    """The summary, and the values that the page's opening and several sections use.

    Of what `scorer` says, the ceiling, the floor, the note and the features are None where the run has none.
    """
    models = {model["name"]: model for model in summary["models"]}
    numbers = sorted(models["grown"]["best_of"], key=int)
    scorer = dict.fromkeys(("note", "ceiling", "shuffled", "features")) | (summary.get("scorer") or {})
    shown = {
        "scorer": scorer,
        "learned": has_learned(summary),
        "small": models.get("small"),
        "grown": models["grown"],
        "tasks": list(models["grown"]["score"]["tasks"]),
        "atoms": list(models["grown"].get("atoms") or ()),
        "networks": list(models["grown"].get("frechet") or ()),
        "kinds": [kind for kind in ("seen", "unseen") if any(kind in model["by_seen"] for model in models.values())],
        "has": {key for model in models.values() for key in model if model[key] is not None},
        "numbers": numbers,
        "best": models["grown"]["best_of"][numbers[-1]],
        "deepest": min(summary["cuts"], key=lambda cut: cut["depth"]),
        "seconds": sum(stage["seconds"] for stage in summary["stages"]),
    }
    return {"sft": [], "scratch": []} | summary | shown


def task_in_words(tag: str) -> str:
    """The name of a task for people: `color attr` for `color_attr`."""
    return tag.replace("_", " ")


def heldout(model: Record) -> str:
    """A model's held-out loss, with its interval where it was measured."""
    if model.get("heldout_loss_low") is None:
        return number(model["heldout_loss"], 4)
    ends = {"low": model["heldout_loss_low"], "high": model["heldout_loss_high"]}
    return interval({"value": model["heldout_loss"]} | ends, 4)


def seconds_per_picture(model: Record) -> str:
    """The seconds that a model takes for a picture, with their interval where it was measured."""
    if model.get("seconds_per_picture_low") is None:
        return number(model.get("seconds_per_picture"), 4)
    ends = {"low": model["seconds_per_picture_low"], "high": model["seconds_per_picture_high"]}
    return interval({"value": model["seconds_per_picture"]} | ends, 4)


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, or a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def interval(scored: Mapping[str, float] | None, digits: int = 2) -> str:
    """A value with the ends of its interval, or a dash for None. The value's key is `overall` or `value`."""
    if scored is None:
        return MISSING
    value = scored["overall"] if "overall" in scored else scored["value"]
    return f"{number(value, digits)} ({number(scored['low'], digits)} to {number(scored['high'], digits)})"


def percent(value: float | None) -> str:
    """A share in percent, or a dash for None."""
    return MISSING if value is None else f"{100 * value:.0f} %".replace("-", "−")


def millions(count: int) -> str:
    """A count of parameters in millions."""
    return f"{count / 1e6:.3g} M"


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a `data:` URI, which a page carries within itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
