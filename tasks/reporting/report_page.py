"""The page `report.html`: one file with no script, which needs no other file and no network."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.evaluation.prompts.evaluation_prompts import ALL_TASKS
from tasks.reporting.report_numbers import Record

TEMPLATE = "report_page.html.j2"
MISSING = "–"
PNG, SVG = "image/png", "image/svg+xml"


def render_page(summary: Record, figures: Mapping[str, bytes], samples: list[Record], reconstructions: bytes) -> str:
    """The page of a summary.

    Args:
        figures: SVGs by name.
        samples: for each prompt its `text`, `task`, whether it was `seen`, and `rows` of (model, PNG strip).
        reconstructions: PNG of held-out pictures, with the autoencoder's reconstructions below them.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval, "percent": percent, "millions": millions}
    environment.filters |= {"png": lambda data: data_uri(data, PNG), "svg": lambda data: data_uri(data, SVG)}
    return environment.get_template(TEMPLATE).render(
        **summary, figures=figures, samples=samples, reconstructions=reconstructions, **key_figures(summary)
    )


def key_figures(summary: Record) -> dict[str, Any]:
    """The values that the page's opening and several sections use."""
    models = {model["name"]: model for model in summary["models"]}
    numbers = sorted(models["grown"]["best_of"], key=int)
    deepest = min(summary["cuts"], key=lambda cut: cut["depth"])
    return {
        "small": models.get("small"),
        "grown": models["grown"],
        "tasks": [task for task in ALL_TASKS if task in models["grown"]["score"]["tasks"]],
        "numbers": numbers,
        "best": models["grown"]["best_of"][numbers[-1]],
        "deepest": deepest,
        "seconds": sum(stage["seconds"] for stage in summary["stages"]),
    }


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
