"""Claims about the report: its numbers are those of the stages, and its page needs nothing but itself."""

import base64
import io
import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.report import draw_figures
from tasks.reporting import report_figures
from tasks.reporting.finetune_recovery import beyond_half, recovered_share
from tasks.reporting.loss_curves import Curve, read_curve
from tasks.reporting.report_figures import loss_curves
from tasks.reporting.report_numbers import collect, measured_costs, seconds_per_picture
from tasks.reporting.report_page import interval, number, render_page
from tasks.reporting.sample_strips import BAR, FRAME, GAP, choose_prompts, strip, thumbnail
from tasks.runtime.stage_run import run_stage
from tasks.stages import stage_of, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json
from tasks.system.manifest import write_manifest
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE
from tests.helpers.small_workspace import write_params

DEPTHS = (2, 1)
MODELS = ["small", "grown", "pruned-2", "finetuned-2", "pruned-1", "finetuned-1"]
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
        for name in MODELS:
            run_stage(stage_of("evaluate", params, name), params)
            vary_verdicts(name, params)
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


class Page(HTMLParser):
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
def page(workspace: Path) -> Page:
    """The parsed page."""
    return Page((workspace / "results" / "report.html").read_text(encoding="utf-8"))


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


def test_page_needs_nothing_but_itself(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    links = [value or "" for _, attributes in page.tags for key, value in attributes.items() if key in ("href", "src")]
    assert len(links) > 20
    for link in links:
        assert link.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) or link[1:] in ids
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_every_picture_of_the_page_can_be_decoded(page: Page) -> None:
    kinds = {"png": 0, "svg+xml": 0}
    for tag, attributes in page.tags:
        if tag != "img":
            continue
        head, _, data = str(attributes["src"]).partition(";base64,")
        kind = head.removeprefix("data:image/")
        kinds[kind] += 1
        if kind == "png":
            Image.open(io.BytesIO(base64.b64decode(data))).load()
        else:
            assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert kinds == {"png": 3 * len(MODELS) + 1, "svg+xml": 6}


def test_page_tells_the_summarys_numbers(page: Page, summary: dict[str, Any]) -> None:
    for model in summary["models"]:
        assert interval(model["score"]) in page.words
        assert number(model["heldout_loss"], 4) in page.words
    assert interval(summary["models"][1]["best_of"]["4"]) in page.words
    assert (
        "trained on labels of the scorer" in page.words
        and "seed, which is 0 alone" in page.words
        and interval(summary["grown_gain"]) in page.words
    )


def test_every_interval_of_cuts_and_controls_is_on_the_page(summary: dict[str, Any]) -> None:
    numbers = itertools.count()
    scores = list(summary["controls"].values())
    for cut in summary["cuts"]:
        scores += [score for score in cut.values() if isinstance(score, dict) and "low" in score]
    for score in scores:
        score.update({key: next(numbers) / 100 for key in score})
    drawn = dict.fromkeys(("family", "best_of_n", "choosers", "loss", "importance", "cost"), b"")
    words = Page(render_page(summary, drawn, [], b"")).words
    assert len(scores) == 2 + 6 * len(DEPTHS)
    assert all(interval(score) in words for score in scores)


def test_a_report_without_the_small_model_is_of_the_grown_one_and_its_cuts(inside: Params) -> None:
    params = replace(inside, workflow=replace(inside.workflow, baselines=("grown",)))
    summary = collect(params)
    assert [model["name"] for model in summary["models"]] == MODELS[1:]
    assert {row["model"] for row in summary["adaptive"]} == {"grown"} and summary["grown_gain"] is None
    drawn = {name: b"" for name in draw_figures(summary, params)}
    words = Page(render_page(summary, drawn, [], b"")).words
    assert "GenEval of all 3 blocks" in words and "From the small model" not in words


def test_a_model_taken_over_as_it_is_has_held_out_points_alone() -> None:
    taken, trained = Curve("small", [], [(0, 2.0)]), Curve("grown", [(1, 3.0), (2, 2.0)], [(0, 3.0), (2, 1.5)])
    left = loss_curves([taken, trained, replace(trained, name="finetuned-1")]).axes[0]
    drawn = [text.get_text() for text in left.get_legend().get_texts()]
    assert drawn == ["small, held-out", "grown, training", "grown, held-out"]


def test_the_page_says_when_the_detector_s_weights_are_not_geneval_s_own(inside: Params, page: Page) -> None:
    summary = collect(inside)
    summary["scorer"]["note"] = NOTES["mask2former"]
    drawn = dict.fromkeys(("family", "best_of_n", "choosers", "loss", "importance", "cost"), b"")
    assert NOTES["mask2former"] in Page(render_page(summary, drawn, [], b"")).words
    assert NOTES["mask2former"] not in page.words


def test_prompts_are_called_seen_or_unseen_only_where_that_is_known(summary: dict[str, Any]) -> None:
    drawn = dict.fromkeys(("family", "best_of_n", "choosers", "loss", "importance", "cost"), b"")
    for seen, said in ((True, "colors, seen"), (False, "colors, unseen"), (None, "colors")):
        sample = {"text": "a photo of a bus", "task": "colors", "seen": seen, "rows": []}
        words = Page(render_page(summary, drawn, [sample], b"")).words
        assert words.partition("a photo of a bus · ")[2].splitlines()[0] == said


def test_the_page_says_what_was_kept_and_by_which_judge(summary: dict[str, Any]) -> None:
    drawn = dict.fromkeys(("family", "best_of_n", "choosers", "loss", "importance", "cost"), b"")
    words = Page(render_page(summary, drawn, [], b"")).words
    for part in ("the one that the judge scores highest is kept", "judge is trained on labels", "Adaptive best of N"):
        assert part in words
    untrained = {key: value for key, value in summary["judge"].items() if key != "yes_share"}
    other = summary | {"keep": 4, "adaptive": [], "judge": untrained}
    words = Page(render_page(other, drawn, [], b"")).words
    assert "the four that the judge scores highest are kept" in words
    for part in ("judge is trained on labels", "Adaptive best of N", "is the one picture"):
        assert part not in words


def test_the_same_outputs_give_the_same_report(inside: Params, workspace: Path, tmp_path: Path) -> None:
    results = workspace / "results"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
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
    (axes,) = report_figures.best_of_n(summary["models"]).axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(drawn) == [name for name in MODELS if not name.startswith("pruned")]
    for model in summary["models"]:
        if model["name"] in drawn:
            expected = [(int(n), score["overall"]) for n, score in model["best_of"].items()]
            np.testing.assert_array_equal(drawn[model["name"]], expected)
    assert list(axes.get_xticks()) == [1, 2, 4]


def test_error_bars_are_the_intervals(summary: dict[str, Any]) -> None:
    (axes,) = report_figures.family(summary["models"]).axes
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
    assert drawn.shape == (64 + 2 * FRAME + 1 + BAR + GAP, 4 * tile, 3)
    blue, green, white = (0x2F, 0x6F, 0xDB), (0x2F, 0x9E, 0x58), (255, 255, 255)
    assert [tuple(drawn[0, i * tile]) for i in range(4)] == [white, white, blue, white]
    assert [tuple(drawn[64 + 2 * FRAME + 1, i * tile + FRAME]) for i in range(4)] == [green, white, white, white]
    np.testing.assert_array_equal(drawn[FRAME : FRAME + 64 : 2, FRAME : FRAME + 64 : 2], pictures[0, 0])
    assert (drawn[:, 3 * tile :] == 255).all()
    first_two = strip(pool, 0, 2)
    assert tuple(first_two[0, 0]) == blue and first_two.shape[1] == 2 * tile
    np.testing.assert_array_equal(first_two[FRAME : FRAME + 64 : 2, FRAME : FRAME + 64 : 2], pictures[0, 0])


@pytest.mark.parametrize(("side", "shown"), [(16, 64), (32, 64), (48, 48), (64, 64), (512, 64)])
def test_thumbnails_are_whole_multiples_or_made_smaller(side: int, shown: int) -> None:
    picture = np.full((side, side, 3), 7, np.uint8)
    assert thumbnail(picture).shape == (shown, shown, 3) and (thumbnail(picture) == 7).all()
