"""The stages that draw and score report what follows from their own pictures, and do the same twice."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from model.checkpoint import load_network
from tasks import controls
from tasks.computing.random_block_choices import random_choices
from tasks.computing.seeds import derive
from tasks.data.scene_vocabulary import TASKS, lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.evaluation_steps import correctness, score_prompts
from tasks.evaluation.evaluation_summary import CHOOSERS, summarize
from tasks.evaluation.geneval_folder import read_prompts, read_results
from tasks.evaluation.judges.judge_choice import TrainedJudge
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.picture_pool import Pool, load_pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt, evaluation_prompts
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.params.experiment_params import Params
from tasks.runtime.command_line import bad_input_exits
from tasks.runtime.stage_command import parse_item
from tasks.stages import scored_models, stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.drawing_workspace import all_bytes, run, write_workspace


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace and its params."""
    monkeypatch.chdir(tmp_path)
    yield write_workspace()


def real_pool(images: int = 6, seed: int = 0) -> Pool:
    """Prompts with pictures that the renderer drew, some for the prompt's task and some for another's."""
    rng = np.random.default_rng(seed)
    chosen = [Prompt(line, seen=i % 2 == 0) for task in TASKS for i, line in enumerate(lines(task)[:4])]
    pictures = np.stack([[render(sample_scene(rng, prompt.tag)) for _ in range(images)] for prompt in chosen])
    judged = rng.normal(size=pictures.shape[:2])
    return Pool(
        chosen,
        pictures,
        correctness(score_prompts(chosen, pictures, GenEvalScorer(SceneDetector()))),
        judged,
        rng.permuted(judged, axis=1),
    )


def test_noise_of_a_picture_does_not_depend_on_batches_or_other_prompts(params: Params) -> None:
    painter = load_painter(paths.SMALL, params, "cpu")
    prompts = ["a photo of a red circle", "a photo of two rings", "a photo of a cross"]
    together = painter.draw(prompts, 9, seed=1, label="test")
    assert together.shape == (3, 9, 16, 16, 3) and together.dtype == np.uint8
    alone = painter.draw(prompts[:1], 2, seed=1, label="test")
    assert np.abs(together[0, :2].astype(int) - alone[0].astype(int)).max() <= 1
    assert (painter.draw(prompts, 9, seed=2, label="test") != together).any(axis=(2, 3, 4)).all()


def test_evaluation_holds_what_the_scorer_says_of_its_own_pictures(params: Params) -> None:
    metrics, out = run(stage_of("evaluate", params, "grown"), params)
    pool = load_pool(out)
    prompts = evaluation_prompts(params.compute.seed, 2)
    assert pool.prompts == prompts and pool.pictures_PNHW3.shape == (len(prompts), 5, 16, 16, 3)
    rows = read_results(out / "results.jsonl")
    assert len(rows) == 4 * len(prompts)
    folders = list(read_prompts(out))
    for folder, prompt, pictures in zip(folders, prompts, pool.pictures_PNHW3, strict=True):
        assert folder.line == prompt.line and np.array_equal(np.stack(folder.pictures), pictures[:4])
    assert [row["correct"] for row in rows] == pool.correct_PN[:, :4].ravel().tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["best_of"]) == {"1", "2", "4"} and summary["pictures_per_prompt"] == 5
    assert metrics["geneval/overall"] == summary["score"]["overall"]
    wanted = len(prompts) * 5
    assert summary["atoms"]["object"]["asked"] == summary["atoms"]["object"]["looked_at"] == wanted
    assert set(summary["atoms"]) == {"object", "count", "colour", "relation"}
    with open(out / "atoms.csv", newline="") as stream:
        counted = [int(row["holds"]) for row in csv.DictReader(stream) if row["atom"] == "object"]
    assert len(counted) == len(prompts) and sum(counted) == pytest.approx(summary["atoms"]["object"]["value"] * wanted)


def test_evaluating_twice_gives_the_same_bytes_and_no_timing(params: Params) -> None:
    first = all_bytes(run(stage_of("evaluate", params, "pruned-2"), params)[1])
    again = all_bytes(run(stage_of("evaluate", params, "pruned-2"), params, Path("again"))[1])
    assert first == again and "pool.safetensors" in first
    assert load_pool(Path("again")).pictures_PNHW3.shape[1] == 3  # pruned models draw fewer


def test_models_share_the_noise_of_each_picture(params: Params) -> None:
    small, pruned = (load_painter(paths.model_folder(name), params, "cpu") for name in ("small", "pruned-2"))
    assert small._noise(3, 1, 2).equal(pruned._noise(3, 1, 2))
    assert not small._noise(3, 1, 2).equal(small._noise(3, 2, 1))


def test_summary_follows_from_the_pool_by_hand() -> None:
    pool = real_pool()
    assert 0 < pool.correct_PN.mean() < 1
    summary = summarize(pool, "geneval", (1, 3, 6, 9), samples=200, seed=0)
    by_task = {task: pool.correct_PN[[tag == task for tag in pool.tasks]] for task in TASKS}
    assert summary["score"]["overall"] == pytest.approx(np.mean([part.mean() for part in by_task.values()]))
    some_right = np.mean([part.any(axis=1).mean() for part in by_task.values()])
    assert summary["oracle"]["6"]["overall"] == pytest.approx(some_right)
    best = np.take_along_axis(pool.correct_PN, pool.judged_PN.argmax(1)[:, None], 1)[:, 0]
    chosen = np.mean([best[[tag == task for tag in pool.tasks]].mean() for task in TASKS])
    assert summary["best_of"]["6"]["overall"] == pytest.approx(chosen)
    for name in CHOOSERS:
        assert list(summary[name]) == ["1", "3", "6"]  # nine cannot be drawn from six
        assert summary[name]["1"]["overall"] == pytest.approx(summary["score"]["overall"])
    assert summary["random"]["6"] == summary["random"]["1"]
    for kind, wanted in (("seen", True), ("unseen", False)):
        rows = [seen == wanted for seen in pool.seen]
        parts = [pool.correct_PN[np.array(rows) & np.array([tag == task for tag in pool.tasks])] for task in TASKS]
        assert summary["by_seen"][kind]["overall"] == pytest.approx(np.mean([part.mean() for part in parts]))


def test_the_stage_keeps_the_best_four_where_params_say_so(params: Params) -> None:
    chosen = replace(params, evaluation=replace(params.evaluation, keep=4, best_of=(2, 5)))
    _, out = run(stage_of("evaluate", chosen, "grown"), chosen)
    written = json.loads((out / "summary.json").read_text())
    expected = summarize(load_pool(out), "geneval", (2, 5), 50, 0, keep=4)
    assert {key: written[key] for key in expected} == expected
    pool = real_pool()
    summary = summarize(pool, "geneval", (3, 6), samples=50, seed=0, keep=4)
    kept = np.take_along_axis(pool.correct_PN, np.argsort(-pool.judged_PN, axis=1)[:, :4], axis=1).mean(axis=1)
    assert summary["best_of"]["6"]["overall"] == pytest.approx(kept.mean())  # as many prompts in each task
    assert summary["oracle"]["6"]["overall"] == pytest.approx((np.minimum(pool.correct_PN.sum(1), 4) / 4).mean())
    assert summary["best_of"]["3"]["overall"] == pytest.approx(pool.correct_PN.mean())


def test_without_the_shuffled_control_a_picture_is_judged_once(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    judge = TrainedJudge.log_yes
    monkeypatch.setattr(TrainedJudge, "log_yes", lambda self, *given: asked.append(given) or judge(self, *given))
    chosen = replace(params, evaluation=replace(params.evaluation, shuffled_control=False))
    metrics, out = run(stage_of("evaluate", chosen, "grown"), chosen)
    assert len(asked) == 1 and not any(name.startswith("shuffled") for name in metrics)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["shuffled"] == {} and list(summary["best_of"]) == list(summary["oracle"]) == ["1", "2", "4"]


def test_pool_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    pool = real_pool(images=2)
    pool.save(tmp_path)
    loaded = load_pool(tmp_path)
    assert loaded.prompts == pool.prompts
    for name in ("pictures_PNHW3", "correct_PN", "judged_PN", "shuffled_PN"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(pool, name))
    (tmp_path / "pool.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=rf"the pool in {tmp_path} cannot be read"):
        load_pool(tmp_path)


def test_unknown_model_is_refused_with_the_ones_there_are(params: Params) -> None:
    names = scored_models(params)
    assert names == ["small", "grown", "pruned-2", "finetuned-2"]
    with pytest.raises(UserError, match=r"pruned-7 is not in .*: choose from small, grown, pruned-2"):
        stage_of("evaluate", params, "pruned-7")


def test_judge_stage_trains_and_reports_the_same_twice(params: Params) -> None:
    record = stage_of("judge", params)
    metrics, first = run(record, params, Path("first"))
    again, second = run(record, params, Path("second"))
    assert metrics == again and all_bytes(first) == all_bytes(second)
    assert set(all_bytes(first)) == {"config.json", "model.safetensors", "history.csv", "calibration.safetensors"}
    assert len((first / "history.csv").read_text().splitlines()) == 1 + params.judge.steps


def test_controls_score_pictures_of_the_network_they_name(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def bright(pictures_PNHW3: np.ndarray) -> np.ndarray:
        means = pictures_PNHW3.reshape(*pictures_PNHW3.shape[:2], -1).astype(np.float64).mean(axis=-1)
        return means > np.median(means)

    monkeypatch.setattr(controls, "score_prompts", lambda _prompts, pictures_PNHW3, _detector: pictures_PNHW3)
    monkeypatch.setattr(controls, "correctness", bright)
    metrics, out = run(stage_of("controls", params), params)
    summary = json.loads((out / "summary.json").read_text())
    assert set(metrics) == {"noise", "untrained", "random-2"}
    choices = summary["random_cuts"]["2"]["kept"]
    assert choices == random_choices(3, 2, params.prune.random_choices, params.compute.seed)

    grown = load_painter(paths.GROWN, params, "cpu")
    texts = [prompt.text for prompt in evaluation_prompts(params.compute.seed, params.geneval.prompts_per_task)]
    share = -(-params.evaluation.images_per_pruned_prompt // len(choices))
    parts = []
    for choice in choices:
        cut = load_network(paths.GROWN)
        cut.blocks = torch.nn.ModuleList(cut.blocks[block] for block in choice)
        painter = replace(grown, network=cut)
        parts.append(bright(painter.draw(texts, share, derive(params.compute.seed, "geneval"), "test")))
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(load_file(out / paths.RANDOM_CUTS.name)["2"], expected)
    assert metrics["random-2"] == pytest.approx(expected.mean())  # as many prompts in each task


def test_the_command_refuses_an_unknown_model_in_one_line(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, bad_input_exits("evaluate"):
        stage_of("evaluate", params, parse_item("evaluate", None, ["--model", "grwn"]))
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("evaluate: --model grwn is not in ") and len(said.splitlines()) == 1
