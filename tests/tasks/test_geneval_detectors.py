"""Claims about the detector and prompts that params.yaml chooses, and about stages that run with GenEval's kind."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawing_workspace import run, write_workspace
from small_detector import write_clip, write_mask2former

from tasks import controls, judge
from tasks.errors import UserError
from tasks.external import external_inputs
from tasks.geneval.__main__ import stage
from tasks.geneval.class_names import class_names
from tasks.geneval.detectors import build_detector, load_detector
from tasks.geneval.layout import read_prompts, read_results
from tasks.geneval.lines import named_classes
from tasks.geneval.mask2former_detector import Mask2FormerDetector
from tasks.geneval.pool import load_pool
from tasks.geneval.prompts import chosen_prompts
from tasks.geneval.scene_detector import SceneDetector
from tasks.geneval.scoring import score_pictures
from tasks.geneval.statistics import score_by_seen
from tasks.params import Params, apply_overrides, build_params, read_yaml

LINES = [
    {"tag": "single_object", "include": [{"class": "bicycle", "count": 1}], "prompt": "a photo of a bicycle"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
    {
        "tag": "counting",
        "include": [{"class": "train", "count": 2}],
        "exclude": [{"class": "train", "count": 3}],
        "prompt": "a photo of two trains",
    },
]
PUBLISHED_KIND = {
    "geneval.detector": "mask2former",
    "geneval.mask2former_path": "models/mask2former",
    "geneval.clip_path": "models/clip",
    "geneval.prompts": "prompts.jsonl",
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace of small models that is scored with a small Mask2Former on prompts of COCO's classes."""
    monkeypatch.chdir(tmp_path)
    write_workspace()
    write_mask2former(Path("models/mask2former"))
    write_clip(Path("models/clip"))
    Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    yield build_params(apply_overrides(read_yaml(Path("params.yaml")), PUBLISHED_KIND, "test"), "test")


def test_the_default_scores_scenes_by_the_scenes_own_detector(params: Params) -> None:
    scenes = replace(params.geneval, detector="scenes", mask2former_path=None, clip_path=None, prompts=None)
    assert isinstance(build_detector(scenes, "cpu"), SceneDetector)
    assert external_inputs("geneval@small", replace(params, geneval=scenes)) == {}
    assert len(chosen_prompts(replace(params, geneval=scenes))) == 2 * 6


def test_the_detector_and_prompts_that_params_name_are_used(params: Params) -> None:
    assert isinstance(build_detector(params.geneval, "cpu"), Mask2FormerDetector)
    prompts = chosen_prompts(params)
    assert [prompt.line for prompt in prompts] == LINES and {prompt.seen for prompt in prompts} == {None}
    with pytest.raises(UserError, match="detector 'yolo' is unknown: choose from scenes, mask2former"):
        load_detector("yolo", None, None, "cpu")


def test_a_model_is_evaluated_with_mask2former_on_the_prompts_of_a_file(params: Params) -> None:
    metrics, out = run(stage(params, "small"), params)
    pool = load_pool(out)
    assert pool.seen == [None] * 3 and pool.tasks == ["single_object", "colors", "counting"]
    detector = build_detector(params.geneval, "cpu")
    for line, pictures, correct in zip(LINES, pool.pictures_PNHW3, pool.correct_PN, strict=True):
        verdicts = score_pictures(line, pictures, detector)
        assert [one.correct for one in verdicts] == correct.tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["detector"] == "mask2former" and "not GenEval's own" in summary["detector_note"]
    assert summary["by_seen"] == {} and "geneval/seen" not in metrics
    assert [prompt.line for prompt in read_prompts(out)] == LINES and len(read_results(out / "results.jsonl")) == 12


def test_controls_are_scored_as_models_are(params: Params) -> None:
    metrics, out = run(controls.stage(params), params)
    assert set(metrics) == {"noise", "untrained", "random-2"}
    assert set(json.loads((out / "summary.json").read_text())["noise"]["tasks"]) == {line["tag"] for line in LINES}


def test_stages_that_score_depend_on_the_files_that_params_name(params: Params) -> None:
    for name in ("geneval@small", "controls", "judge"):
        before = external_inputs(name, params)
        assert list(before) == ["models/mask2former", "models/clip", "prompts.jsonl"]
    Path("prompts.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    changed = {path for path, digest in external_inputs("judge", params).items() if digest != before[path]}
    assert changed == {"prompts.jsonl"}
    assert external_inputs("train", params) == external_inputs("finetune@2", params) == {}


def test_prompts_that_the_detector_cannot_judge_stop_a_stage_before_it_draws(params: Params) -> None:
    scenes = replace(params, geneval=replace(params.geneval, detector="scenes", mask2former_path=None, clip_path=None))
    with pytest.raises(UserError, match="scenes finds no 'bicycle', which the prompt 'a photo of a bicycle' asks for"):
        run(stage(scenes, "small"), scenes)


def test_a_judge_is_trained_on_prompts_that_mask2former_can_judge(params: Params) -> None:
    metrics, out = run(judge.stage(params), params, Path("trained"))
    assert (out / "model.safetensors").is_file() and 0 <= metrics["yes_share"] <= 1
    prompts, unseen = judge.choose_prompts_to_draw(params, chosen_prompts(params))
    assert len(prompts) == 12 and {name for prompt in prompts for name in named_classes(prompt.line)} < set(
        class_names()
    )
    assert unseen and not {prompt.text for prompt in unseen} & {prompt.text for prompt in prompts}


def test_prompts_of_unknown_kind_are_on_neither_side_of_seen_and_unseen() -> None:
    correct = np.array([[1.0], [0.0], [0.0], [1.0]])
    found = score_by_seen(correct, ["a"] * 4, [True, False, None, None], 10, np.random.default_rng(0))
    assert (found["seen"].overall.value, found["unseen"].overall.value) == (1, 0)
    assert score_by_seen(correct, ["a"] * 4, [None] * 4, 10, np.random.default_rng(0)) == {}
