"""Claims about the detector and prompts that params.yaml chooses, and about stages that run with GenEval's kind."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from tasks.evaluation.detectors.detector_choice import build_detector, load_detector
from tasks.evaluation.detectors.mask2former_detector import Mask2FormerDetector
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.geneval_folder import read_prompts, read_results
from tasks.evaluation.picture_pool import load_pool
from tasks.evaluation.picture_scoring import score_pictures
from tasks.evaluation.prompts.evaluation_prompts import chosen_prompts
from tasks.evaluation.prompts.judge_prompts import prompts_of_objects
from tasks.evaluation.prompts.object_class_names import class_names
from tasks.evaluation.prompts.prompt_lines import named_classes
from tasks.evaluation.score_statistics import score_by_seen
from tasks.params.experiment_params import Params
from tasks.params.params_files import apply_overrides, build_params, read_yaml
from tasks.params.user_files import digests_of, paths_of
from tasks.stages import stage_of, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.drawing_workspace import run, write_workspace
from tests.helpers.small_detector import write_clip, write_mask2former

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
    params = build_params(apply_overrides(read_yaml(Path("params.yaml")), PUBLISHED_KIND, "test"), "test")
    rmtree(paths.SCORER)  # it is made ready for the scenes
    run(stage_of("scorer", params), params)
    yield params


def test_the_default_scores_scenes_by_the_scenes_own_detector(params: Params) -> None:
    scenes = replace(params.geneval, detector="scenes", mask2former_path=None, clip_path=None, prompts=None)
    assert isinstance(build_detector(scenes, "cpu"), SceneDetector)
    assert paths_of(stage_of("evaluate", params, "small").user_files, replace(params, geneval=scenes)) == []
    assert len(chosen_prompts(replace(params, geneval=scenes))) == 2 * 6


def test_the_detector_and_prompts_that_params_name_are_used(params: Params) -> None:
    assert isinstance(build_detector(params.geneval, "cpu"), Mask2FormerDetector)
    prompts = chosen_prompts(params)
    assert [prompt.line for prompt in prompts] == LINES and {prompt.seen for prompt in prompts} == {None}
    with pytest.raises(UserError, match="detector 'yolo' is unknown: choose from scenes, mask2former"):
        load_detector("yolo", None, None, "cpu")


def test_a_model_is_evaluated_with_mask2former_on_the_prompts_of_a_file(params: Params) -> None:
    metrics, out = run(stage_of("evaluate", params, "small"), params)
    pool = load_pool(out)
    assert pool.seen == [None] * 3 and pool.tasks == ["single_object", "colors", "counting"]
    detector = build_detector(params.geneval, "cpu")
    for line, pictures, correct in zip(LINES, pool.pictures_PNHW3, pool.correct_PN, strict=True):
        verdicts = score_pictures(line, pictures, detector)
        assert [one.correct for one in verdicts] == correct.tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scorer"] == "geneval"
    assert summary["by_seen"] == {} and "geneval/seen" not in metrics
    assert [prompt.line for prompt in read_prompts(out)] == LINES and len(read_results(out / "results.jsonl")) == 12


def test_controls_are_scored_as_models_are(params: Params) -> None:
    metrics, out = run(stage_of("controls", params), params)
    assert set(metrics) == {"noise", "untrained", "random-2"}
    assert set(json.loads((out / "summary.json").read_text())["noise"]["tasks"]) == {line["tag"] for line in LINES}


def test_stages_that_score_depend_on_the_files_that_params_name(params: Params) -> None:
    stages = stages_of(params)
    for name in ("evaluate@small", "controls", "judge"):
        assert list(digests_of(stages[name].user_files, params)) == ["models/mask2former", "models/clip"]
    before = digests_of(stages["scorer"].user_files, params)
    assert list(before) == ["prompts.jsonl", "models/mask2former", "models/clip"]
    Path("prompts.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    changed = {
        path for path, digest in digests_of(stages["scorer"].user_files, params).items() if digest != before[path]
    }
    assert changed == {"prompts.jsonl"}
    assert stages["train"].user_files == stages["finetune@2"].user_files == ()


def test_prompts_that_the_detector_cannot_judge_stop_a_stage_before_it_draws(params: Params) -> None:
    scenes = replace(params, geneval=replace(params.geneval, detector="scenes", mask2former_path=None, clip_path=None))
    with pytest.raises(UserError, match="scenes finds no 'bicycle', which the prompt 'a photo of a bicycle' asks for"):
        run(stage_of("scorer", scenes), scenes, Path("again"))


def test_a_judge_is_trained_on_prompts_that_mask2former_can_judge(params: Params) -> None:
    metrics, out = run(stage_of("judge", params), params, Path("trained"))
    assert (out / "model.safetensors").is_file() and 0 <= metrics["yes_share"] <= 1
    asked = prompts_of_objects(params, chosen_prompts(params))
    prompts, unseen = asked.training, asked.unseen
    assert len(prompts) == 12 and {name for prompt in prompts for name in named_classes(prompt.line)} < set(
        class_names()
    )
    assert unseen and not {prompt.text for prompt in unseen} & {prompt.text for prompt in prompts}


def test_prompts_of_unknown_kind_are_on_neither_side_of_seen_and_unseen() -> None:
    correct = np.array([[1.0], [0.0], [0.0], [1.0]])
    found = score_by_seen(correct, ["a"] * 4, [True, False, None, None], 10, np.random.default_rng(0))
    assert (found["seen"].overall.value, found["unseen"].overall.value) == (1, 0)
    assert score_by_seen(correct, ["a"] * 4, [None] * 4, 10, np.random.default_rng(0)) == {}
