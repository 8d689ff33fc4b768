"""Stage `report`: writes the results as `results/summary.json` and one self-contained page, `results/report.html`.

Beside them it writes `results/family.png`, the one picture that stands for the experiment, and the page's figures as
PNGs in `results/figures/`. Every number comes from a stage's output, or from its record of time and memory.
The page fits a screen and a phone, a light and a dark one.
"""

import matplotlib
from matplotlib.figure import Figure

from tasks.evaluation.picture_pool import Pool, load_pool
from tasks.params.experiment_params import Params
from tasks.reporting import report_figures
from tasks.reporting.family_picture import Column, headline, sample_columns
from tasks.reporting.figure_style import NARROW, STYLE, WIDE, dark_colours, png, settle, svg
from tasks.reporting.headline_measure import headline_measure
from tasks.reporting.loss_curves import Curve, read_curve
from tasks.reporting.report_numbers import Record, collect
from tasks.reporting.report_origin import report_origin
from tasks.reporting.report_page import FigureOnPage, Page, render_page
from tasks.reporting.sample_strips import choose_prompts, compact_png, shrink_png, strip, thumbnail
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.stages import scored_models
from tasks.system import paths
from tasks.system.files import read_json, write_bytes, write_json

DPI = 110
MAX_WIDTH = 2048  # pixels of the row of reconstructions
HEADLINE_PROMPTS = 6  # rows of pictures in family.png


def run(context: Context) -> Metrics:
    """Collect the numbers, draw the figures, write the page; returns scores, and cuts' gains over random cuts."""
    params, out = context.params, context.out
    summary, origin = collect(params), report_origin(params)
    pools = {name: load_pool(paths.EVALUATION / name) for name in scored_models(params)}
    curves = trained_curves(params)
    prompts = pools["grown"].prompts
    shown = choose_prompts(prompts, HEADLINE_PROMPTS, params.compute.seed)
    columns, texts = sample_columns(pools, shown), [prompts[position].text for position in shown]
    with matplotlib.rc_context(STYLE):
        measure, compared = headline_measure(summary, origin["score_name"]), report_figures.levels(summary)
        picture = headline(summary["models"], columns, texts, measure, origin, compared, curves)
        write_bytes(out / "family.png", png(settle(picture), DPI))
        context.tracker.log_image("family", out / "family.png")
        figures = {}
        for name, figure in draw_figures(summary, curves, origin["score_name"], WIDE).items():
            path = out / "figures" / f"{name}.png"
            write_bytes(path, png(settle(figure), DPI))
            context.tracker.log_image(name, path)
            figures[name] = figure
        narrow = draw_figures(summary, curves, origin["score_name"], NARROW)
        dark = dark_colours([model["name"] for model in summary["models"]])
        drawn = {
            name: FigureOnPage(svg(figure, f"{name}-wide", dark), svg(settle(narrow[name]), f"{name}-narrow", dark))
            for name, figure in figures.items()
        }
    page = Page(
        figures=drawn,
        dark_colours=dark,
        family=family_grid(columns, texts),
        samples=sample_grids(pools, params),
        reconstructions=shrink_png(paths.AUTOENCODER / "reconstructions.png", MAX_WIDTH),
    )
    write_json(out / "summary.json", summary)
    write_bytes(out / "report.html", render_page(summary, origin, page).encode())
    scores = {f"{model['scorer']}/{model['name']}/overall": model["score"]["overall"] for model in summary["models"]}
    return scores | {f"gain_over_random/{cut['depth']}": cut["gain_over_random"]["value"] for cut in summary["cuts"]}


def trained_curves(params: Params) -> list[Curve]:
    """The curves of the small model, the grown model, the fine-tuned ones, and those from scratch."""
    families = (("finetuned", params.prune.depths), ("sft", params.sft.models), ("scratch", params.scratch.depths))
    others = [f"{family}-{item}" for family, items in families for item in items]
    return [read_curve(name) for name in ("small", "grown", *others)]


def draw_figures(summary: Record, curves: list[Curve], score_name: str, width: float) -> dict[str, Figure]:
    """The page's figures by name, `width` inches wide where they fill the page."""
    importance, models = read_json(paths.IMPORTANCE / "importance.json"), summary["models"]
    measure, compared = headline_measure(summary, score_name), report_figures.levels(summary)
    return {
        "family": report_figures.family(models, measure, compared, width),
        "best_of_n": report_figures.best_of_n(models, score_name, width),
        "choosers": report_figures.choosers(models, score_name, width),
        "loss": report_figures.loss_curves(curves, width),
        "importance": report_figures.block_importance(importance, summary["cuts"], width),
        "cost": report_figures.costs_figure(summary["stages"], width),
    }


def family_grid(columns: list[Column], texts: list[str]) -> Record:
    """The samples at the page's head: the models' names, and for each prompt its text and a picture of each model."""
    pictures = [
        [(compact_png(thumbnail(picture)), right) for picture, right in zip(column.pictures, column.right, strict=True)]
        for column in columns
    ]
    rows = [{"text": text, "pictures": list(row)} for text, row in zip(texts, zip(*pictures, strict=True), strict=True)]
    return {"names": [column.name for column in columns], "rows": rows}


def sample_grids(pools: dict[str, Pool], params: Params) -> list[Record]:
    """The prompts of the page: each with text, task, whether it was seen, and a PNG strip of each model's pictures."""
    prompts, count = pools["grown"].prompts, params.report.grid_images
    return [
        {
            "text": prompts[position].text,
            "task": prompts[position].tag,
            "seen": prompts[position].seen,
            "rows": [(name, compact_png(strip(pool, position, count))) for name, pool in pools.items()],
        }
        for position in choose_prompts(prompts, params.report.grid_prompts, params.compute.seed)
    ]


if __name__ == "__main__":
    stage_command("report", __doc__)
