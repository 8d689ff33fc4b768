"""The page `report.html`: one file with no script, which needs no other file and no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.reporting.best_model import MARK, best_in_words, best_model
from tasks.reporting.figure_style import variable
from tasks.reporting.learned import has_learned
from tasks.reporting.report_numbers import Record
from tasks.system.readable_digits import COUNTS, scaled

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
    environment.filters |= {"stacked": stacked, "spread": spread, "count": lambda count: scaled(count, COUNTS)}
    shown = summary_with_defaults(summary)
    best = best_model(summary)
    words = best_in_words(best, origin["score_name"]) if best else ""
    return environment.get_template(TEMPLATE).render(
        **shown, origin=origin, page=page, best_model=best, best_in_words=words, mark=MARK
    )


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
        "time": time_unit(summary["models"]),
        "judge_note": judge_note(summary["judge"]),
        "seconds": sum(stage["seconds"] for stage in summary["stages"]),
    }
    return {"sft": [], "scratch": []} | summary | shown


def task_in_words(tag: str) -> str:
    """The name of a task for people: `color attr` for `color_attr`."""
    return tag.replace("_", " ")


def spread(model: Record, key: str, factor: float = 1) -> Record | None:
    """A model's number under `key` times `factor`, with the ends of its interval; None where it was not measured.

    Without an interval, it has no ends.
    """
    if model.get(key) is None:
        return None
    ends = {end: model.get(f"{key}_{end}") for end in ("low", "high")}
    return {"value": factor * model[key]} | {end: factor * value for end, value in ends.items() if value is not None}


def time_unit(models: Sequence[Record]) -> Record:
    """Seconds, or milliseconds if every measured model draws a picture in less than a second."""
    measured = [seconds for model in models if (seconds := model.get("seconds_per_picture")) is not None]
    return {"unit": "ms", "in_a_second": 1000} if max(measured, default=1) < 1 else {"unit": "s", "in_a_second": 1}


def stacked(scored: Mapping[str, float] | None, digits: int | None = None) -> str:
    """A number to three significant digits with its interval in a line below it, or a dash for None.

    Stacked, a table of many measures is narrow enough for a screen. The ends have the decimals of the number. A number
    near zero has those of half its interval, since its own first digits say nothing. `digits` sets the decimals.
    """
    if scored is None:
        return MISSING
    value = scored["overall"] if "overall" in scored else scored["value"]
    if "low" not in scored:
        return number(value, decimals(value) if digits is None else digits)
    low, high = scored["low"], scored["high"]
    digits = decimals(max(abs(value), (high - low) / 2)) if digits is None else digits
    ends = f"({number(low, digits)} to {number(high, digits)})"
    return Markup('{} <span class="ends">{}</span>').format(number(value, digits), ends)


def decimals(value: float) -> int:
    """How many decimals show a number to three significant digits: 3 for 0.61, 0 for 123. At most six."""
    if value == 0:
        return 3
    exponent = int(f"{abs(value):.2e}".partition("e")[2])
    return min(max(2 - exponent, 0), 6)


def judge_note(judge: Record) -> str:
    """Why the judge has no AUC on new prompts, or none within prompts; empty if it has both."""
    if "auc" not in judge:
        all_are = "wrong" if judge["unseen_yes_share"] == 0 else "right"
        tested = f"The scorer finds all pictures {all_are} that the judge was tested on"
        return f"{tested}. The judge therefore has no AUC, which compares right pictures with wrong ones."
    if "auc_within_prompts" not in judge:
        return "The judge has no AUC within a prompt's pictures, since no prompt of the test has right and wrong ones."
    return ""


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
