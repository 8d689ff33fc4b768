"""The evaluation measures what it has the models for, on its own pictures, as the metrics' modules measure it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.evaluation.dpg_bench import answer_prompts, read_questions, summarize_answers
from tasks.evaluation.frechet_distance import frechet_distance
from tasks.evaluation.inception_features import InceptionFeatures
from tasks.evaluation.judges import vision_language_judge
from tasks.evaluation.judges.judge_choice import open_judge
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.picture_pool import load_pool
from tasks.evaluation.scorers.scorer_choice import REAL_INCEPTION
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.stages import stage_of
from tasks.system import paths
from tests.helpers.drawing_workspace import run, write_workspace
from tests.helpers.published_folders import write_questions
from tests.helpers.small_detector import write_clip
from tests.helpers.small_workspace import PROJECT
from tests.helpers.tiny_vision_language import save_idefics3
from tests.helpers.torchscript_network import write_network


def test_the_evaluation_measures_frechet_distances_clip_score_and_dpg_bench_where_their_models_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vision_language_judge, "LEAST_ANSWER_MASS", 1e-9)  # a random model rarely says yes or no
    params = write_workspace()
    save_idefics3(tmp_path / "judge")
    write_clip(tmp_path / "clip")
    write_network(tmp_path / "inception.pt", channels=3)
    write_questions(tmp_path / "dpg_bench.csv")
    named = {"features_path": "clip", "inception_path": "inception.pt", "dpg_questions": "dpg_bench.csv"}
    params = replace(
        params,
        judge=replace(params.judge, kind="vision_language", path="judge", batch_size=16),
        evaluation=replace(params.evaluation, **named),
    )
    for name in ("scorer", "judge"):
        shutil.rmtree(stage_of(name, params).output)
        run(stage_of(name, params), params)
    _, out = run(stage_of("evaluate", params, "small"), params)
    summary = json.loads((out / "summary.json").read_text())
    pool, real = load_pool(out), np.load(paths.SCORER / REAL_INCEPTION)
    drawn = InceptionFeatures(tmp_path / "inception.pt", "cpu").read(pool.pictures_PNHW3[:, 0])
    assert real.shape == (4, 3) and drawn.shape == (len(pool.prompts), 3)
    found = summary["frechet"]
    assert list(found) == ["clip of clip", "TorchScript network of inception.pt"]
    assert found["TorchScript network of inception.pt"]["value"] == frechet_distance(real, drawn).value
    assert found["clip of clip"]["channels"] == 16 and found["clip of clip"]["drawn"] == len(pool.prompts)
    assert summary["clip_score"]["low"] <= summary["clip_score"]["value"] <= summary["clip_score"]["high"]
    pictures_PNHW3 = np.load(out / "dpg_pictures.npy")
    assert pictures_PNHW3.shape == (2, 4, 16, 16, 3)
    judge = open_judge(paths.JUDGE, load_painter(paths.SMALL, params, "cpu").text_encoder, params.compute.dtype, "cpu")
    prompts = read_questions(tmp_path / "dpg_bench.csv")
    answers = answer_prompts(prompts, lambda place: list(pictures_PNHW3[place]), judge.log_yes_to)
    wanted = summarize_answers(prompts, answers, params.evaluation.bootstrap_samples, params.compute.seed)
    assert summary["dpg_bench"] == wanted and (wanted["prompts"], wanted["pictures"]) == (2, 8)


def test_only_a_vision_language_judge_is_given_questions() -> None:
    params = load_params(PROJECT / PARAMS_FILE)
    with pytest.raises(ValueError, match=r"dpg_questions is 'dpg_bench.csv' with judge.kind trained"):
        replace(params, evaluation=replace(params.evaluation, dpg_questions="dpg_bench.csv"))
