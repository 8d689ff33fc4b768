"""Stage `report`: writes the results as `results/summary.json` and one self-contained page, `results/report.html`.

Beside them it writes `results/family.png`, the one picture that stands for the experiment, and the page's figures as
PNGs in `results/figures/`. Every number comes from a stage's output, or from its record of time and memory.
"""

import matplotlib
from matplotlib.figure import Figure

from tasks.data.picture_files import encode_png
from tasks.evaluation.picture_pool import Pool, load_pool
from tasks.params.experiment_params import Params
from tasks.reporting import report_figures
from tasks.reporting.family_picture import headline
from tasks.reporting.figure_style import STYLE, png, settle, svg
from tasks.reporting.loss_curves import read_curve
from tasks.reporting.report_numbers import Record, collect
from tasks.reporting.report_page import render_page
from tasks.reporting.sample_strips import choose_prompts, shrink_png, strip
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
    summary = collect(params)
    pools = {name: load_pool(paths.EVALUATION / name) for name in scored_models(params)}
    with matplotlib.rc_context(STYLE):
        drawn = {name: settle(figure) for name, figure in draw_figures(summary, params).items()}
        shown = choose_prompts(pools["grown"].prompts, HEADLINE_PROMPTS, params.compute.seed)
        write_bytes(out / "family.png", png(settle(headline(summary["models"], pools, shown)), DPI))
        context.tracker.log_image("family", out / "family.png")
        for name, figure in drawn.items():
            path = out / "figures" / f"{name}.png"
            write_bytes(path, png(figure, DPI))
            context.tracker.log_image(name, path)
        page = render_page(
            summary,
            {name: svg(figure) for name, figure in drawn.items()},
            sample_grids(pools, params),
            shrink_png(paths.AUTOENCODER / "reconstructions.png", MAX_WIDTH),
        )
    write_json(out / "summary.json", summary)
    write_bytes(out / "report.html", page.encode())
    scores = {f"{model['scorer']}/{model['name']}/overall": model["score"]["overall"] for model in summary["models"]}
    return scores | {f"gain_over_random/{cut['depth']}": cut["gain_over_random"]["value"] for cut in summary["cuts"]}


def draw_figures(summary: Record, params: Params) -> dict[str, Figure]:
    """The page's figures by name."""
    importance = read_json(paths.IMPORTANCE / "importance.json")
    trained = ("small", "grown", *(f"finetuned-{depth}" for depth in params.prune.depths))
    return {
        "family": report_figures.family(summary["models"]),
        "best_of_n": report_figures.best_of_n(summary["models"]),
        "choosers": report_figures.choosers(summary["models"]),
        "loss": report_figures.loss_curves([read_curve(name) for name in trained]),
        "importance": report_figures.block_importance(importance, summary["cuts"]),
        "cost": report_figures.costs_figure(summary["stages"]),
    }


def sample_grids(pools: dict[str, Pool], params: Params) -> list[Record]:
    """The prompts of the page: each with text, task, whether it was seen, and a PNG strip of each model's pictures."""
    prompts, count = pools["grown"].prompts, params.report.grid_images
    return [
        {
            "text": prompts[position].text,
            "task": prompts[position].tag,
            "seen": prompts[position].seen,
            "rows": [(name, encode_png(strip(pool, position, count))) for name, pool in pools.items()],
        }
        for position in choose_prompts(prompts, params.report.grid_prompts, params.compute.seed)
    ]


if __name__ == "__main__":
    stage_command("report", __doc__)
