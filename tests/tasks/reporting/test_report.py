"""Claims about the report: its numbers are those of the stages, and its page needs nothing but itself."""

import base64
import io
import itertools
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from safetensors.numpy import load_file

from tasks import (
    controls,
)
from tasks import evaluate as evaluate
from tasks.data.scene_vocabulary import TASKS, lines
from tasks.evaluation.adaptive_best_of_n import Rule, adaptive_best_of, pictures_drawn
from tasks.evaluation.detectors.detector import NOTES
from tasks.evaluation.evaluation_summary import summarize
from tasks.evaluation.picture_pool import Pool, load_pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.scorer_labels import SCORER_MEANINGS
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.report import draw_figures, trained_curves
from tasks.reporting import report_figures
from tasks.reporting import report_origin as report_origin_module
from tasks.reporting.figure_style import (
    DARK,
    FINETUNED,
    GRID,
    GROUND,
    GROWN,
    NARROW,
    PRUNED,
    SMALL,
    STYLE,
    TEXT,
    TICKS,
    WIDE,
    dark_colours,
    settle,
    variable,
)
from tasks.reporting.finetune_recovery import beyond_half, recovered_share
from tasks.reporting.headline_measure import Measure, headline_measure
from tasks.reporting.learned import has_learned
from tasks.reporting.loss_curves import Curve, read_curve
from tasks.reporting.report_figures import loss_curves
from tasks.reporting.report_numbers import collect, measured_costs, seconds_per_picture
from tasks.reporting.report_origin import commit_in_words, pictures_in_words, report_origin
from tasks.reporting.report_page import FigureOnPage, Page, interval, number, render_page, stacked, time_unit
from tasks.reporting.sample_strips import BAR, FRAME, GAP, choose_prompts, strip, thumbnail
from tasks.runtime.stage_run import run_stage
from tasks.stages import stage_of, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json
from tasks.system.manifest import write_manifest
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE
from tests.helpers.chromium import CHROMIUM, needs_chromium
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import write_params

DEPTHS = (2, 1)
DATE = "2020-02-20"
FIGURES = ("family", "best_of_n", "choosers", "loss", "importance", "cost")
MODELS = ["small", "grown", "scratch-3", "pruned-2", "finetuned-2", "pruned-1", "finetuned-1", "sft-grown"]
TINY = {
    "compute": {"device": "cpu", "dtype": "float32", "threads": 1},
    "shard": {"image_size": 16, "train_samples": 24, "heldout_samples": 160},
    "autoencoder": {"latent_channels": 4, "block_channels": [8, 8], "steps": 2, "batch_size": 4},
    "text_encoder": {"hidden_size": 16, "layers": 1, "heads": 2, "max_tokens": 16, "steps": 2, "batch_size": 4},
    "network": {"hidden_size": 16, "linear_head_dim": 8, "cross_heads": 2},
    "pretrain": {"depth": 1, "steps": 12, "batch_size": 4, "warmup_steps": 1, "evaluate_every": 6},
    "grow": {"depth": 3},
    "train": {"steps": 4, "batch_size": 4, "warmup_steps": 1, "evaluate_every": 2},
    "importance": {"prompts": 100, "times": [0.3, 0.7]},
    "prune": {"depths": list(DEPTHS), "random_choices": 2},
    "finetune": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "evaluate_every": 1},
    "scratch": {"depths": [3], "steps": 4, "batch_size": 4, "warmup_steps": 1, "evaluate_every": 2},
    "data": {
        "sets": {
            "sft": {
                "source": "scenes",
                "path": None,
                "scene_tasks": ["position"],
                "train_samples": 12,
                "heldout_samples": 8,
            }
        }
    },
    "sft": {
        "models": ["grown"],
        "data": "encoded-sft",
        "steps": 2,
        "batch_size": 4,
        "warmup_steps": 1,
        "evaluate_every": 1,
    },
    "sampling": {"steps": 1},
    "judge": {
        "prompts": 12,
        "images_per_prompt": 1,
        "calibration_prompts": 6,
        "calibration_images": 3,
        "shard_pictures": 0,
        "steps": 2,
        "batch_size": 4,
    },
    "geneval": {"prompts_per_task": 4},
    "evaluation": {
        "images_per_prompt": 4,
        "images_per_pruned_prompt": 2,
        "best_of": [1, 2, 4],
        "adaptive_means": [1.5, 2.5, 3],
        "bootstrap_samples": 200,
    },
    "report": {"grid_prompts": 3, "grid_images": 3},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Outputs of every real stage at a tiny scale and the report of them; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("report")
    write_params(folder, {f"{section}.{key}": value for section, pairs in TINY.items() for key, value in pairs.items()})
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        spool = open_spool(SPOOLS, "test", tags={})
        patch.setenv(SPOOL_VARIABLE, str(spool.path))
        params = load_params()
        for stem in (
            "shard",
            "autoencoder",
            "text_encoder",
            "encode",
            "pretrain",
            "grow",
            "train",
            "importance",
            "scorer",
            "latency",
            "judge",
        ):
            run_stage(stage_of(stem, params), params)
        for depth in DEPTHS:
            run_stage(stage_of("prune", params, depth), params)
            run_stage(stage_of("finetune", params, depth), params)
        for stem, item in (("shard", "sft"), ("encode", "sft"), ("sft", "grown"), ("scratch", 3)):
            run_stage(stage_of(stem, params, item), params)
        for name in MODELS:
            run_stage(stage_of("evaluate", params, name), params)
            vary_verdicts(name, params)
        patch.setattr(report_origin_module, "today", lambda: DATE)
        patch.setattr(controls, "correctness", random_verdicts)  # the scorer finds all pictures of these models wrong
        run_stage(stage_of("controls", params), params)
        run_stage(stage_of("report", params), params)
        spool.close()
        yield folder


def vary_verdicts(name: str, params: Params) -> None:
    """Give a model's pool verdicts that differ by prompt and model: untrained models are always wrong."""
    folder, rng = paths.EVALUATION / name, np.random.default_rng(MODELS.index(name))
    quality = {"small": 0.4, "grown": 0.9}.get(name, 0.2 if name.startswith("pruned") else 0.6)
    pool = load_pool(folder)
    pool = replace(pool, correct_PN=rng.random(pool.correct_PN.shape) < quality)
    pool.save(folder)
    write_json(folder / "summary.json", summarize(pool, "geneval", params.evaluation.best_of, 200, params.compute.seed))
    write_manifest(folder)


def random_verdicts(pictures: list[list[object]]) -> np.ndarray:
    """Verdicts (P, N) that say nothing of the pictures."""
    return np.random.default_rng(len(pictures)).random((len(pictures), len(pictures[0]))) < 0.3


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The params of the workspace, which is the working directory."""
    monkeypatch.chdir(workspace)
    return load_params()


@pytest.fixture
def summary(workspace: Path) -> dict[str, Any]:
    """What the report says."""
    return json.loads((workspace / "results" / "summary.json").read_text(encoding="utf-8"))


class PageText(HTMLParser):
    """The tags, links, text and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words += data


@pytest.fixture
def origin(inside: Params) -> dict[str, Any]:
    """The words of the page's head in the workspace."""
    return report_origin(inside)


def words_of(summary: dict[str, Any], origin: dict[str, Any], *samples: dict[str, Any]) -> str:
    """The text of the page of a summary, without its figures and pictures."""
    figures = dict.fromkeys(FIGURES, FigureOnPage("", ""))
    return PageText(
        render_page(summary, origin, Page(figures, {}, {"names": [], "rows": []}, list(samples), b""))
    ).words


@pytest.fixture
def page(workspace: Path) -> PageText:
    """The parsed page."""
    return PageText((workspace / "results" / "report.html").read_text(encoding="utf-8"))


def test_models_are_in_order_with_the_facts_of_their_checkpoints(workspace: Path, summary: dict[str, Any]) -> None:
    assert [model["name"] for model in summary["models"]] == MODELS
    for model in summary["models"]:
        weights = load_file(workspace / "outputs" / model["name"] / "model.safetensors")
        assert model["parameters"] == sum(tensor.size for tensor in weights.values())
        assert model["depth"] == len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        assert set(model["score"]) == {"overall", "low", "high", "tasks"}
        assert set(model["score"]["tasks"]) == set(TASKS)
        assert all(set(score) == {"value", "low", "high"} for score in model["score"]["tasks"].values())
        numbers = ["1", "2"] if model["name"].startswith("pruned-") else ["1", "2", "4"]
        for chooser in ("best_of", "oracle", "random", "shuffled"):
            assert list(model[chooser]) == numbers
            assert all(set(score) == {"overall", "low", "high"} for score in model[chooser].values())
        curve = workspace / "outputs" / model["name"] / "heldout.csv"
        if curve.exists():
            assert model["heldout_loss"] == float(curve.read_text().splitlines()[-1].split(",")[2])


def test_what_a_cut_lost_and_won_back_follows_from_the_pools(workspace: Path, summary: dict[str, Any]) -> None:
    tags = np.array(load_pool(workspace / paths.EVALUATION / "grown").tasks)

    def mean_of_tasks(correct_PN: np.ndarray) -> float:
        return float(np.mean([correct_PN[tags == task].mean() for task in TASKS]))

    def overall(name: str) -> float:
        return mean_of_tasks(load_pool(workspace / paths.EVALUATION / name).correct_PN)

    grown, random_cuts = overall("grown"), load_file(workspace / paths.RANDOM_CUTS)
    metrics = read_json(workspace / paths.RESULTS / "metrics.json")
    for cut, depth in zip(summary["cuts"], DEPTHS, strict=True):
        pruned, finetuned = overall(f"pruned-{depth}"), overall(f"finetuned-{depth}")
        assert cut["depth"] == depth and len(cut["removed"]) == 3 - depth
        at_random = mean_of_tasks(random_cuts[str(depth)])
        assert cut["random_choice"]["overall"] == pytest.approx(at_random) and at_random > 0
        assert cut["gain_over_random"]["value"] == pytest.approx(pruned - at_random)
        assert metrics[f"gain_over_random/{depth}"] == cut["gain_over_random"]["value"]
        assert metrics[f"geneval/pruned-{depth}/overall"] == pytest.approx(pruned)
        assert cut["lost"]["value"] == pytest.approx(grown - pruned)
        assert cut["won_back"]["value"] == pytest.approx(finetuned - pruned)
        assert cut["beyond_half"]["value"] == pytest.approx(finetuned - (pruned + grown) / 2)
        assert cut["recovered_share"]["value"] == pytest.approx((finetuned - pruned) / (grown - pruned))


def test_the_gain_from_small_to_grown_follows_from_the_pools(workspace: Path, summary: dict[str, Any]) -> None:
    pools = {name: load_pool(workspace / paths.EVALUATION / name) for name in ("small", "grown")}
    tags = np.array(pools["grown"].tasks)
    small, grown = (np.mean([pool.correct_PN[tags == task].mean() for task in TASKS]) for pool in pools.values())
    assert summary["grown_gain"]["value"] == pytest.approx(grown - small)
    assert summary["grown_gain"]["low"] < grown - small < summary["grown_gain"]["high"]


def test_beyond_half_is_paired_and_zero_where_half_came_back() -> None:
    rng = np.random.default_rng(0)
    pruned, grown = rng.random((12, 4)) * 0.3, 0.4 + rng.random((12, 7)) * 0.6
    halfway = (pruned.mean(axis=1) + grown.mean(axis=1))[:, None] / 2
    tasks = ["a"] * 5 + ["b"] * 7
    even = beyond_half(pruned, halfway, grown, tasks, 500, rng)
    assert [even.value, even.low, even.high] == pytest.approx([0, 0, 0])
    more = beyond_half(pruned, halfway + 0.125, grown, tasks, 500, rng)
    assert [more.value, more.low, more.high] == pytest.approx([0.125, 0.125, 0.125])


def test_recovered_share_is_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    pruned, grown = rng.random((12, 4)) * 0.3, 0.4 + rng.random((12, 7)) * 0.6
    halfway = (pruned.mean(axis=1) + grown.mean(axis=1))[:, None] / 2
    share = recovered_share(pruned, halfway, grown, ["a"] * 5 + ["b"] * 7, 500, rng)
    assert share is not None
    assert [share.value, share.low, share.high] == pytest.approx([0.5, 0.5, 0.5])


def test_recovered_share_agrees_with_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    tasks = ["a"] * 6 + ["b"] * 15
    pruned, finetuned, grown = (rng.random((21, n)) < q for n, q in ((4, 0.2), (9, 0.6), (9, 0.8)))
    share = recovered_share(pruned, finetuned, grown, tasks, 4000, np.random.default_rng(2))
    ratios = []
    for _ in range(4000):
        drawn = [rng.integers(0, 6, 6), 6 + rng.integers(0, 15, 15)]
        p, f, g = (np.mean([model[rows].mean() for rows in drawn]) for model in (pruned, finetuned, grown))
        ratios.append((f - p) / (g - p))
    assert share is not None
    assert [share.low, share.high] == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=0.03)


def test_no_share_is_given_of_a_loss_that_may_be_none() -> None:
    rng = np.random.default_rng(3)
    same = rng.random((8, 4))
    assert recovered_share(same, same + 0.1, same, ["a"] * 8, 100, rng) is None
    assert recovered_share(same, same, same - 0.1, ["a"] * 8, 100, rng) is None
    assert recovered_share(same, same, rng.random((8, 4)) + 0.02, ["a"] * 8, 100, rng) is None


def test_page_needs_nothing_but_itself(page: PageText) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    keys = ("href", "src", "xlink:href")
    links = [value or "" for _, attributes in page.tags for key, value in attributes.items() if key in keys]
    assert len(links) > 20
    for link in links:
        assert link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in ids)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_every_picture_of_the_page_can_be_decoded(page: PageText) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    for attributes in pictures:
        data = str(attributes["src"]).removeprefix("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    shown_by_family = 6 * (len(MODELS) + 1)
    assert len(pictures) == shown_by_family + 3 * len(MODELS) + 1


def test_every_figure_is_on_the_page_for_a_screen_and_for_a_phone(workspace: Path, page: PageText) -> None:
    text = (workspace / "results" / "report.html").read_text(encoding="utf-8")
    figures = [ElementTree.fromstring(element) for element in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(figures) == 2 * len(FIGURES)
    assert all("width" not in figure.attrib and float(figure.attrib["viewBox"].split()[2]) > 0 for figure in figures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    classes = [attributes.get("class") for _, attributes in page.tags if attributes.get("role") == "img"]
    assert classes == ["wide", "narrow"] * len(FIGURES)


def test_every_colour_of_a_figure_that_has_a_meaning_has_a_second_one_for_a_dark_page(workspace: Path) -> None:
    text = (workspace / "results" / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:fill|stroke): var\((--c[0-9a-f]{6})\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)")[:2]
    for name in used:
        first, second = (re.search(rf"{name}: (#[0-9a-f]{{6}});", part) for part in (light, dark))
        assert first and second and first[1] == f"#{name.removeprefix('--c')}"
    shades = dark_colours(MODELS)
    assert (
        {variable(colour) for colour in (GROWN, SMALL, PRUNED, TEXT, TICKS, GRID)} <= used <= set(map(variable, shades))
    )
    left = re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL)))
    assert not set(left) & set(shades) and "#000000" not in left


def luminance(colour: str) -> float:
    """The relative luminance of a colour by WCAG 2.2, from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize(("number_of", "least"), [((TEXT, TICKS, GROWN), 4.5), ((SMALL, PRUNED, FINETUNED), 2.5)])
def test_text_and_lines_stand_out_from_a_light_and_a_dark_ground(number_of: tuple[str, ...], least: float) -> None:
    for colour in number_of:
        for shade, ground in ((colour, GROUND), (DARK[colour], DARK[GROUND])):
            lighter, darker = sorted((luminance(shade), luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= least


def test_page_tells_the_summarys_numbers(page: PageText, summary: dict[str, Any]) -> None:
    table = page.words.partition("\nModels\n")[2].partition("\nBest of N\n")[0]
    for model in summary["models"]:
        assert interval(model["score"], 3) in table
        loss = {"value": model["heldout_loss"], "low": model["heldout_loss_low"], "high": model["heldout_loss_high"]}
        assert interval(loss, 3) in table
        milliseconds = 1000 * model["seconds_per_picture"]
        assert f"{milliseconds:#.3g}".removesuffix(".") in table or milliseconds >= 999.5
    assert interval(summary["models"][1]["best_of"]["4"]) in page.words
    assert (
        "trained on labels of the scorer" in page.words
        and "seed, which is 0 alone" in page.words
        and interval(summary["grown_gain"]) in page.words
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.6104, 0.1152, 1.1056, "0.610 (0.115 to 1.106)"),
        (-0.005, -0.041, 0.032, "−0.0050 (−0.0410 to 0.0320)"),
        (2.0, 1.07, 2.9, "2.00 (1.07 to 2.90)"),
        (512.3, 480.1, 540.9, "512 (480 to 541)"),
        (0.0, 0.0, 0.0, "0.000 (0.000 to 0.000)"),
    ],
)
def test_a_cell_of_the_table_of_models_has_three_digits_and_its_interval_in_a_line_below(
    value: float, low: float, high: float, shown: str
) -> None:
    cell = stacked({"value": value, "low": low, "high": high})
    assert PageText(cell).words == shown and '<span class="ends">(' in cell
    assert stacked({"value": value}) == shown.partition(" ")[0].replace("−0.0050", "−0.00500")
    assert stacked(None) == "–"


def test_times_are_in_milliseconds_where_all_are_below_a_second() -> None:
    fast, slow, unmeasured = {"seconds_per_picture": 0.9}, {"seconds_per_picture": 1.2}, {"name": "grown"}
    assert time_unit([fast, unmeasured]) == {"unit": "ms", "in_a_second": 1000}
    assert time_unit([fast, slow]) == time_unit([unmeasured]) == {"unit": "s", "in_a_second": 1}


def test_the_page_marks_the_best_model_and_says_what_its_interval_leaves_open(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    grown = summary["models"][MODELS.index("grown")]["score"]
    grown |= {"overall": 0.9, "low": 0.85, "high": 0.95}
    near = summary["models"][MODELS.index("scratch-3")]["score"]
    near |= {"overall": 0.8, "low": 0.75, "high": 0.86}
    for model in summary["models"]:
        if model["name"] not in ("grown", "scratch-3"):
            model["score"] |= {"overall": 0.3, "low": 0.2, "high": 0.4}
    words = words_of(summary, origin)
    assert "grown★ 0.900 (0.850 to 0.950)" in words and words.count("★ 0.") == 1
    assert "is highest for grown. Its 95 % interval meets that of scratch-3, and does not tell them apart." in words
    summary["controls"]["noise"] = {"overall": 0.9, "low": 0.8, "high": 1.0}
    summary["models"][MODELS.index("small")] |= {"heldout_loss": 0.0, "heldout_loss_low": 0.0, "heldout_loss_high": 0.0}
    words = words_of(summary, origin)
    assert "Held-out loss is lowest for small." in words and "★ 0.000 (0.000 to 0.000)" in words
    assert "★ 0.9" not in words


@pytest.mark.parametrize(("share", "all_are"), [(0.0, "wrong"), (1.0, "right")])
def test_the_page_says_why_the_judge_has_no_area_under_the_curve(
    summary: dict[str, Any], origin: dict[str, Any], share: float, all_are: str
) -> None:
    judge = {"unseen_yes_share": share}
    words = words_of(summary | {"judge": judge}, origin)
    assert f"The scorer finds all pictures {all_are} that the judge was tested on." in words
    areas = {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8, "untrained_auc": 0.5}
    within = {"auc_within_prompts": 0.6, "untrained_auc_within_prompts": 0.5}
    mixed = {"unseen_yes_share": 0.5} | areas
    words = words_of(summary | {"judge": mixed}, origin)
    assert "no AUC within a prompt's pictures" in words and "finds all pictures" not in words
    assert "has no AUC" not in words_of(summary | {"judge": mixed | within}, origin)


def test_every_interval_of_cuts_and_controls_is_on_the_page(summary: dict[str, Any], origin: dict[str, Any]) -> None:
    numbers = itertools.count()
    scores = list(summary["controls"].values())
    for cut in summary["cuts"]:
        scores += [score for score in cut.values() if isinstance(score, dict) and "low" in score]
    for score in scores:
        score.update({key: next(numbers) / 100 for key in score})
    words = words_of(summary, origin)
    assert len(scores) == 2 + 6 * len(DEPTHS)
    assert all(interval(score) in words for score in scores)


def test_a_report_without_the_small_model_is_of_the_grown_one_and_its_cuts(inside: Params) -> None:
    params = replace(inside, workflow=replace(inside.workflow, baselines=("grown",)))
    summary = collect(params)
    assert [model["name"] for model in summary["models"]] == MODELS[1:]
    assert {row["model"] for row in summary["adaptive"]} == {"grown"} and summary["grown_gain"] is None
    assert set(draw_figures(summary, trained_curves(params), "GenEval", WIDE)) == set(FIGURES)
    words = words_of(summary, report_origin(params))
    assert "GenEval's rules of all 3 blocks" in words and "From the small model" not in words


def test_a_model_taken_over_as_it_is_has_held_out_points_alone() -> None:
    taken, trained = Curve("small", [], [(0, 2.0)]), Curve("grown", [(1, 3.0), (2, 2.0)], [(0, 3.0), (2, 1.5)])
    left = loss_curves([taken, trained, replace(trained, name="finetuned-1")]).axes[0]
    drawn = [text.get_text() for text in left.get_legend().get_texts()]
    assert drawn == ["small, held-out", "grown, training", "grown, held-out"]


def test_the_page_says_when_the_detector_s_weights_are_not_geneval_s_own(inside: Params, page: PageText) -> None:
    own = replace(inside.geneval, detector="mask2former", mask2former_path="a", clip_path="b", prompts="c")
    summary = collect(inside)
    summary["scorer"]["note"] = NOTES["mask2former"]
    words = words_of(summary, report_origin(replace(inside, geneval=own)))
    assert words.count(str(NOTES["mask2former"])) == 1 and "rendered scenes: share" not in words
    assert NOTES["mask2former"] not in page.words


def test_the_head_names_pictures_scorer_profile_and_date(page: PageText) -> None:
    head = page.words.partition("The family")[0]
    for words in (
        "A family of models for rendered scenes",
        "rendered scenes of coloured shapes: 184 pictures, of which 160 are held out",
        f"GenEval's rules on rendered scenes: {SCORER_MEANINGS['geneval']}",
        "default (params.yaml of the project)",
        DATE,
    ):
        assert words in head


def test_the_head_names_the_profile_of_a_copy(inside: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(paths.PARAMS_ORIGIN, {"origin": "smoke, with grow.depth=5"})
    assert report_origin(inside)["settings"] == "smoke, with grow.depth=5"


def own_pictures(params: Params, summary: dict[str, Any]) -> tuple[Params, dict[str, Any]]:
    """Params of own pictures that the scorer matching scores, and the summary as it then is: one task, nothing seen."""
    shard = replace(params.shard, source="folder", path="/pictures/of cats")
    models = [
        model
        | {"scorer": "matching", "by_seen": {}}
        | {"score": model["score"] | {"tasks": {"matching": next(iter(model["score"]["tasks"].values()))}}}
        for model in summary["models"]
    ]
    return replace(params, shard=shard), summary | {"models": models}


def test_the_page_does_not_call_a_score_by_matching_geneval(inside: Params, summary: dict[str, Any]) -> None:
    params, matched = own_pictures(inside, summary)
    sample = {"text": "two cats", "task": "matching", "seen": None, "rows": []}
    words = words_of(matched, report_origin(params), sample)
    assert SCORER_MEANINGS["matching"] in words and "Matching, best of 4" in words and "two cats\n" in words
    assert "GenEval" not in words.replace(SCORER_MEANINGS["matching"], "")
    assert "A family of models for the pictures in /pictures/of cats" in words
    assert "/pictures/of cats (folder): 184 pictures, of which 160 are held out" in words
    for absent in ("rendered scenes", "Each task", "unseen compare"):
        assert absent not in words
    for figure in draw_figures(matched, trained_curves(params), report_origin(params)["score_name"], WIDE).values():
        assert not any("GenEval" in text.get_text() for text in figure.findobj(Text))


def test_a_report_of_own_pictures_that_are_not_here_leaves_their_number_out(
    inside: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = replace(inside.shard, source="webdataset", path="shards")
    assert pictures_in_words(shard) == "shards (webdataset)"


def test_the_page_tells_the_commit_and_whether_files_differ_from_it(inside: Params, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert commit_in_words(tmp_path) is None
    (tmp_path / "a").write_text("1")
    for command in (("init", "-q"), ("add", "a"), ("commit", "-q", "-m", "a")):
        git(*command)
    commit = git("rev-parse", "HEAD")
    assert commit_in_words(tmp_path) == commit[:12]
    (tmp_path / "a").write_text("2")
    assert commit_in_words(tmp_path) == f"{commit[:12]}, with uncommitted edits"


def test_the_page_shows_what_the_scorer_gives_real_pictures_and_wrong_captions(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    ceiling, floor = ({"overall": end, "low": end - 0.01, "high": end + 0.01} for end in (0.9321, 0.0642))
    scorer = {
        "name": "matching",
        "note": "The scorer saw half.",
        "ceiling": ceiling,
        "shuffled": floor,
        "features": "f",
    }
    summary["models"][0] |= {
        "heldout_loss_low": 0.7511,
        "heldout_loss_high": 0.7522,
        "distance": {"value": 0.0312, "low": 0.03, "high": 0.04},
        "clip_score": {"value": 0.21, "low": 0.2, "high": 0.22},
        "seconds_per_picture": 0.5016,
        "seconds_per_picture_low": 0.5011,
        "seconds_per_picture_high": 0.5042,
    }
    without = words_of(summary | {"scorer": scorer | {"ceiling": None, "shuffled": None}}, origin)
    words = words_of(summary | {"scorer": scorer}, origin)
    for text in (interval(ceiling), interval(floor), "ceiling: real held-out pictures"):
        assert text in words and text not in without
    for text in ("(0.751 to 0.752)", "0.0312 (0.0300 to 0.0400)", "0.210 (0.200 to 0.220)", "502 (501 to 504)"):
        assert text in words
    assert "The scorer saw half." in words and "in f; smaller is better" in words
    levels = report_figures.levels(summary | {"scorer": scorer})
    (axes,) = report_figures.family(summary["models"], Measure("score", "GenEval"), levels).axes
    assert {0.9321, 0.0642} <= {line.get_ydata()[0] for line in axes.lines}


def test_the_page_shows_each_atom_of_geneval_with_the_number_of_pictures(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    assert "Each atom" not in words_of(summary | {"models": [bare(model) for model in summary["models"]]}, origin)
    reached = {"asked": 321, "looked_at": 213, "value": 0.4321, "low": 0.4021, "high": 0.4621}
    summary["models"] = [bare(model) | {"atoms": {"object": reached}} for model in summary["models"]]
    summary["models"][0]["atoms"]["relation"] = {"asked": 77, "looked_at": 0}
    summary["models"][1]["atoms"]["relation"] = reached | {"looked_at": 66}
    words = words_of(summary, origin)
    assert "Each atom" in words and "0.43 (0.40 to 0.46), 213" in words and "0.43 (0.40 to 0.46), 66" in words
    assert "relation" in words and ", 0 " not in words


def test_the_page_shows_frechet_distances_and_dpg_bench_with_what_must_be_said_beside_them(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    assert "DPG-Bench" not in words_of(summary, origin)
    measured = {
        "frechet": {"Inception of 2015-12-05": {"value": 61.23, "low": 51.1, "high": 71.4, "note": "Of 553 drawn."}},
        "dpg_bench": {"value": 84.71, "low": 83.9, "high": 85.5, "note": "Answered by another model."},
    }
    summary["models"] = [model | measured for model in summary["models"]]
    words = words_of(summary, origin)
    assert "61.23 (51.10 to 71.40)" in words and "84.7 (83.9 to 85.5)" in words
    assert "Inception of 2015-12-05: Of 553 drawn." in words and "DPG-Bench: Answered by another model." in words


def bare(model: dict[str, Any]) -> dict[str, Any]:
    """A model's record without its atoms."""
    return {key: value for key, value in model.items() if key != "atoms"}


def test_a_model_fine_tuned_on_chosen_pairs_is_shown_with_its_gain_by_task(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    (record,) = summary["sft"]
    assert (record["model"], record["data"]) == ("grown", "encoded-sft")
    scores = {model["name"]: model["score"] for model in summary["models"]}
    for task, gain in record["tasks"].items():
        after, before = (scores[name]["tasks"][task]["value"] for name in ("sft-grown", "grown"))
        assert gain["value"] == pytest.approx(after - before)
    assert record["gain"]["value"] == pytest.approx(scores["sft-grown"]["overall"] - scores["grown"]["overall"])
    words = words_of(summary, origin)
    assert "Fine-tuning on chosen pairs" in words and interval(record["gain"]) in words
    del summary["sft"]
    assert "Fine-tuning on chosen pairs" not in words_of(summary, origin)


def test_a_model_from_scratch_is_compared_with_the_grown_one(summary: dict[str, Any], origin: dict[str, Any]) -> None:
    (record,) = summary["scratch"]
    models = {model["name"]: model for model in summary["models"]}
    assert (record["depth"], record["samples"], record["small_samples"]) == (3, 16, 48)
    assert record["heldout_loss"] == models["scratch-3"]["heldout_loss"]
    gain = models["grown"]["score"]["overall"] - models["scratch-3"]["score"]["overall"]
    assert record["gain"]["value"] == pytest.approx(gain)
    assert "scratch-3" in words_of(summary, origin)
    summary["scratch"] = [record | {"grown_samples": None}]
    assert "never" in words_of(summary, origin)
    del summary["scratch"]
    assert "compares the grown model with networks" not in words_of(summary, origin)


def test_a_run_too_short_to_learn_says_so_and_its_headline_is_the_held_out_loss(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    assert has_learned(summary) and "too short to learn" not in words_of(summary, origin)
    grown = summary["models"][1]
    summary["controls"]["noise"] = {"overall": 0.5, "low": 0.4, "high": grown["score"]["low"]}
    words = words_of(summary, origin)
    assert not has_learned(summary) and "This run was too short to learn." in words
    loss = f"{number(summary['models'][0]['heldout_loss'], 3)} → {number(grown['heldout_loss'], 3)}"
    assert loss in words and f"{number(summary['models'][0]['score']['overall'])} →" not in words
    measure = headline_measure(summary, "GenEval")
    (axes,) = report_figures.family(summary["models"], measure, report_figures.levels(summary)).axes
    drawn = {round(y, 9) for line in axes.lines for y in line.get_ydata()}
    # the held-out loss of the last model is of other pictures, and is not drawn beside the others
    losses = {model["name"]: round(model["heldout_loss"], 9) for model in summary["models"]}
    assert losses.pop("sft-grown") not in drawn and set(losses.values()) <= drawn and axes.get_ylim()[0] > 0
    assert not {round(model["score"]["overall"], 9) for model in summary["models"]} & drawn


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that a figure shows. matplotlib also keeps labels of ticks beyond the ends of an axis, unseen."""
    figure.draw_without_rendering()
    beyond = set()
    for axes in [*figure.axes, *(child for one in figure.axes for child in one.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            shown = set(axis._update_ticks())
            every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond |= {label for tick in every if tick not in shown for label in (tick.label1, tick.label2)}
    unseen = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [text for text in found if text not in beyond | unseen]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of texts of a figure whose boxes overlap, by more than half a pixel on each side."""
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in drawn_texts(figure)]
    return [(one, other) for (one, box), (other, around) in itertools.combinations(boxes, 2) if box.overlaps(around)]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("short", [False, True])
def test_labels_do_not_overlap_and_none_is_cut_off(
    inside: Params, summary: dict[str, Any], width: float, short: bool
) -> None:
    if short:
        summary["controls"]["noise"] = {"overall": 1, "low": 1, "high": 1}
    score = {"overall": 0.8, "low": 0.7, "high": 0.9}
    summary["scorer"] = {"name": "geneval", "ceiling": score, "shuffled": score}
    with matplotlib.rc_context(STYLE):
        for name, figure in draw_figures(summary, trained_curves(inside), "GenEval's rules", width).items():
            settle(figure)
            assert overlapping(figure) == [], name
            whole = figure.bbox.padded(0.5)
            outside = [text.get_text() for text in drawn_texts(figure) if not _inside(text, whole)]
            assert outside == [], name


def _inside(text: Text, whole: Bbox) -> bool:
    box = text.get_window_extent()
    return bool(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1)


def test_labels_that_overlap_are_found() -> None:
    figure = Figure(figsize=(3, 3))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.51, "other")
    figure.text(0.1, 0.1, "far")
    assert overlapping(figure) == [("one", "other")]


@pytest.mark.parametrize("depths", [(60, 40, 30, 20), (8, 7, 6, 5, 4, 3, 2, 1), (60, 59, 58, 57)])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_sizes_on_the_upper_axis_keep_apart(depths: tuple[int, ...], width: float) -> None:
    score = {"overall": 0.5, "low": 0.4, "high": 0.6}
    kinds = ["grown", *(f"finetuned-{depth}" for depth in depths[1:])]
    models = [
        {"name": name, "depth": depth, "parameters": 5_000_000 + 800_000 * depth, "score": score}
        for name, depth in zip(kinds, depths, strict=True)
    ]
    with matplotlib.rc_context(STYLE):
        figure = settle(report_figures.family(models, Measure("score", "GenEval's rules, one picture"), (), width))
    assert overlapping(figure) == []
    (upper,) = figure.axes[0].child_axes
    assert str(depths[0]) in [label.get_text() for label in upper.get_xticklabels()]


def test_sixty_blocks_have_room_for_their_numbers() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((9, 60)) + 0.01
    times = [round(0.1 * step, 1) for step in range(1, 10)]
    importance = {"mean": scores.mean(0), "std": scores.std(0), "times": times, "scores": scores}
    cuts = [{"depth": depth, "removed": list(range(depth, 60))} for depth in (40, 30, 20)]
    with matplotlib.rc_context(STYLE):
        for width in (WIDE, NARROW):
            assert overlapping(settle(report_figures.block_importance(importance, cuts, width))) == []


@needs_chromium
@pytest.mark.integration
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_is_no_wider_than_a_phone_or_a_screen(workspace: Path, tmp_path: Path, width: int) -> None:
    page = (workspace / "results" / "report.html").as_uri()
    found = found_in_chromium(page, width, tmp_path, "root.scrollWidth + ' of ' + root.clientWidth")
    assert found == f"{width} of {width}"


@needs_chromium
@pytest.mark.integration
def test_the_table_of_models_has_no_column_beyond_its_box_on_a_screen(
    summary: dict[str, Any], origin: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "all.html").write_text(page_with_all_measures(summary, origin), encoding="utf-8")
    box = "const box = root.querySelector('#models .scroll');"
    found = found_in_chromium(
        (tmp_path / "all.html").as_uri(), 1300, tmp_path, "box.scrollWidth - box.clientWidth", box
    )
    assert found == "0"


@needs_chromium
@pytest.mark.integration
def test_on_a_phone_model_and_score_stay_in_view_and_a_line_says_that_the_table_goes_on(
    summary: dict[str, Any], origin: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "all.html").write_text(page_with_all_measures(summary, origin), encoding="utf-8")
    look = """
        const box = root.querySelector('#models .scroll'), row = box.querySelectorAll('tbody tr')[1];
        box.scrollLeft = 300;
        const edge = box.getBoundingClientRect(), ends = index => row.children[index].getBoundingClientRect();
        const hint = root.querySelector('.swipe').getBoundingClientRect().height > 0;
        const seen = [ends(0).left >= edge.left, ends(1).left >= ends(0).right - 1, ends(1).right < edge.right];
        const gone = ends(2).left < edge.left + 150;"""
    found = found_in_chromium((tmp_path / "all.html").as_uri(), 390, tmp_path, "[...seen, gone, hint].join(' ')", look)
    assert found == "true true true true true"


def page_with_all_measures(summary: dict[str, Any], origin: dict[str, Any]) -> str:
    """The page of a summary whose models have every measure that the table of models shows."""
    measured = {"distance": {"value": -0.8068, "low": -1.2281, "high": 1.3855}}
    measured |= {"clip_score": {"value": 0.2612, "low": 0.2511, "high": 0.2713}}
    models = [model | measured for model in summary["models"]]
    models[-1]["name"] = "sft-finetuned-12"
    assert {"seconds_per_picture_low", "heldout_loss_low"} <= set(models[0]) and models[0]["by_seen"]
    figures = dict.fromkeys(FIGURES, FigureOnPage("", ""))
    page = Page(figures, {}, {"names": [], "rows": []}, [], b"")
    return render_page(summary | {"models": models}, origin, page)


def found_in_chromium(page: str, width: int, folder: Path, value: str, before: str = "") -> str:
    """The value of an expression of JavaScript in a page `width` pixels wide, whose `root` is its first element."""
    frame = folder / "frame.html"  # a frame, since a window of Chromium has at least 500 pixels
    frame.write_text(
        f"""<iframe src="{page}" style="width: {width}px; height: 900px; border: 0" onload="
        const root = this.contentDocument.documentElement; {before}
        document.body.dataset.found = {value}"></iframe>""",
        encoding="utf-8",
    )
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *flags, profile, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    said = re.search('data-found="([^"]*)"', done.stdout)
    assert said, done.stdout[-2000:]
    return said[1]


def test_prompts_are_called_seen_or_unseen_only_where_that_is_known(
    summary: dict[str, Any], origin: dict[str, Any]
) -> None:
    for seen, said in ((True, "colors, seen"), (False, "colors, unseen"), (None, "colors")):
        sample = {"text": "a photo of a bus", "task": "colors", "seen": seen, "rows": []}
        words = words_of(summary, origin, sample)
        assert words.partition("a photo of a bus · ")[2].splitlines()[0] == said


def test_the_page_says_what_was_kept_and_by_which_judge(summary: dict[str, Any], origin: dict[str, Any]) -> None:
    words = words_of(summary, origin)
    for part in ("the one that the judge scores highest is kept", "judge is trained on labels", "Adaptive best of N"):
        assert part in words
    untrained = {key: value for key, value in summary["judge"].items() if key != "yes_share"}
    other = summary | {"keep": 4, "adaptive": [], "judge": untrained}
    words = words_of(other, origin)
    assert "the four that the judge scores highest are kept" in words
    for part in ("judge is trained on labels", "Adaptive best of N", "is the one picture"):
        assert part not in words


def test_the_same_outputs_give_the_same_report(inside: Params, workspace: Path, tmp_path: Path) -> None:
    results = workspace / "results"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_origin_module, "today", lambda: DATE)
        patch.setenv(SPOOL_VARIABLE, str(tmp_path / "spool.jsonl"))
        run_stage(stage_of("report", inside), inside)
    after = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    record = results / "stages" / "report.json"
    assert before.pop(record) and after.pop(record)
    assert before == after
    assert {path.name for path in after if path.parent == results} >= {"summary.json", "report.html", "family.png"}


def test_costs_are_those_of_the_outputs_in_place(inside: Params, summary: dict[str, Any]) -> None:
    names = [stage["name"] for stage in summary["stages"]]
    assert (
        names == [name for name in stages_of(inside) if name in names] and names[0] == "shard" and "report" not in names
    )
    assert "finetune@1" in names and "evaluate@small" not in names  # its output was changed after it ran
    record = paths.STAGE_RECORDS / "train.json"
    kept = record.read_bytes()
    try:
        write_json(record, read_json(record) | {"output": "another"})
        assert [stage["name"] for stage in measured_costs(inside)] == [name for name in names if name != "train"]
        record.unlink()
        assert [stage["name"] for stage in measured_costs(inside)] == [name for name in names if name != "train"]
    finally:
        record.write_bytes(kept)


def test_a_model_has_the_seconds_of_its_depth_or_none(inside: Params, summary: dict[str, Any]) -> None:
    path = paths.LATENCY / "latency.json"
    kept = path.read_bytes()
    measured = json.loads(kept)["seconds_per_picture"]
    for model in summary["models"]:
        assert model["seconds_per_picture"] == measured[str(model["depth"])]["value"] > 0
    try:
        path.unlink()
        assert seconds_per_picture(summary["models"][0]["depth"]) == {}
    finally:
        path.write_bytes(kept)


def test_adaptive_best_of_n_follows_from_the_pools_and_the_calibration(inside: Params, summary: dict[str, Any]) -> None:
    rows = summary["adaptive"]
    assert [(row["model"], row["target"]) for row in rows] == list(itertools.product(("small", "grown"), (1.5, 2.5)))
    arrays = load_file(paths.JUDGE / "calibration.safetensors")
    assert arrays["scores"].shape == (6, 3) and sorted(arrays["task"]) == list(range(6))
    for row in rows:
        pool, rule = load_pool(paths.EVALUATION / row["model"]), Rule(row["threshold"], 3)
        assert row["limit"] == 3 and row["calibrated"] == pytest.approx(pictures_drawn(arrays["scores"], rule).mean())
        drawn, right = pictures_drawn(pool.judged_PN, rule), adaptive_best_of(pool.correct_PN, pool.judged_PN, rule)
        tasks = [np.array(pool.tasks) == task for task in TASKS]
        assert row["pictures"]["value"] == pytest.approx(np.mean([drawn[rows].mean() for rows in tasks]))
        assert row["adaptive"]["value"] == pytest.approx(np.mean([right[rows].mean() for rows in tasks]))
    assert rows[1]["threshold"] > rows[0]["threshold"] == rows[2]["threshold"]


def test_a_damaged_output_is_named(inside: Params) -> None:
    path = paths.IMPORTANCE / "importance.json"
    kept = path.read_bytes()
    try:
        path.write_bytes(kept.replace(b"0", b"1", 1))
        with pytest.raises(UserError, match=r"importance\.json does not match"):
            run_stage(stage_of("report", inside), inside)
    finally:
        path.write_bytes(kept)


def test_loss_curves_go_on_where_the_small_model_ended(inside: Params) -> None:
    curves = [read_curve(name) for name in ("small", "grown", "finetuned-2")]
    assert [curve.samples for curve in curves] == [48, 16, 8]
    left, right = report_figures.loss_curves(curves).axes
    drawn = {line.get_label(): line.get_xydata() for axes in (left, right) for line in axes.lines}
    assert drawn["grown, held-out"][0, 0] == pytest.approx(0.048) and drawn["grown, held-out"][-1, 0] == 0.064
    np.testing.assert_array_equal(drawn["finetuned-2"], [(x / 1000, loss) for x, loss in curves[2].heldout])
    assert drawn["grown"][0][1] == curves[1].heldout[-1][1]


def test_removed_blocks_are_marked_in_the_row_of_their_cut(inside: Params, summary: dict[str, Any]) -> None:
    figure = report_figures.block_importance(read_json(paths.IMPORTANCE / "importance.json"), summary["cuts"])
    marks = {text.get_position() for axes in figure.axes for text in axes.texts if text.get_text() == "×"}
    assert marks == {(block, row) for row, cut in enumerate(summary["cuts"]) for block in cut["removed"]}


def test_curves_against_n_have_every_number_and_no_unfinished_cut(summary: dict[str, Any]) -> None:
    (axes,) = report_figures.best_of_n(summary["models"], "GenEval").axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(drawn) == [name for name in MODELS if not name.startswith("pruned")]
    for model in summary["models"]:
        if model["name"] in drawn:
            expected = [(int(n), score["overall"]) for n, score in model["best_of"].items()]
            np.testing.assert_array_equal(drawn[model["name"]], expected)
    assert list(axes.get_xticks()) == [1, 2, 4]


def test_error_bars_are_the_intervals(summary: dict[str, Any]) -> None:
    (axes,) = report_figures.family(summary["models"], Measure("score", "GenEval")).axes
    ends = {tuple(np.round(segment[:, 1], 9)) for bars in axes.collections for segment in bars.get_segments()}
    assert ends == {tuple(np.round([m["score"]["low"], m["score"]["high"]], 9)) for m in summary["models"]}


def test_prompts_to_show_take_turns_by_task_and_follow_from_the_seed_alone() -> None:
    prompts = [Prompt(line, seen=True) for task in TASKS for line in lines(task)[:5]]
    chosen = choose_prompts(prompts, 8, seed=0)
    assert len(set(chosen)) == 8
    assert sorted(prompts[position].tag for position in chosen[:6]) == sorted(TASKS)
    assert chosen == choose_prompts(prompts, 8, seed=0) != choose_prompts(prompts, 8, seed=1)
    assert len(choose_prompts(prompts[:5], 8, seed=0)) == 5


def test_strip_marks_the_judges_choice_and_the_right_pictures() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (1, 3, 32, 32, 3), dtype=np.uint8)
    judged = np.array([[-2.0, np.nan, -1.0]])
    prompt = Prompt(lines("colors")[0], seen=True)
    pool = Pool([prompt], pictures, np.array([[True, False, False]]), judged, judged)
    tile = 64 + 2 * FRAME + GAP
    drawn = strip(pool, 0, 4)
    assert drawn.shape == (64 + 2 * FRAME + 1 + BAR + GAP, 4 * tile, 4)
    blue, green, nothing = (0x2F, 0x6F, 0xDB, 255), (0x2F, 0x9E, 0x58, 255), (0, 0, 0, 0)
    assert [tuple(drawn[0, i * tile]) for i in range(4)] == [nothing, nothing, blue, nothing]
    assert [tuple(drawn[64 + 2 * FRAME + 1, i * tile + FRAME]) for i in range(4)] == [green, nothing, nothing, nothing]
    shown = drawn[FRAME : FRAME + 64 : 2, FRAME : FRAME + 64 : 2]
    np.testing.assert_array_equal(shown[..., :3], pictures[0, 0])
    assert (shown[..., 3] == 255).all() and not drawn[:, 3 * tile :].any()
    first_two = strip(pool, 0, 2)
    assert tuple(first_two[0, 0]) == blue and first_two.shape[1] == 2 * tile
    np.testing.assert_array_equal(first_two[FRAME : FRAME + 64 : 2, FRAME : FRAME + 64 : 2, :3], pictures[0, 0])


@pytest.mark.parametrize(("side", "shown"), [(16, 64), (32, 64), (48, 48), (64, 64), (512, 64)])
def test_thumbnails_are_whole_multiples_or_made_smaller(side: int, shown: int) -> None:
    picture = np.full((side, side, 3), 7, np.uint8)
    assert thumbnail(picture).shape == (shown, shown, 3) and (thumbnail(picture) == 7).all()
