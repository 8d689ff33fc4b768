"""The stages that make a vision-language judge: labelled pictures of GenEval's kind, and a fine-tune on yes and no.

The pictures are rendered scenes, of which the prompt of every second one says the truth. The models are small and
random, of transformers' real classes.
"""

import json
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, get_cosine_schedule_with_warmup

from tasks import judge_examples
from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import TASKS, Line, combination, lines, seen_lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.judges.answer_training import AnswerTrainer, answer_loss, answer_scores, learning_rate
from tasks.evaluation.judges.example_drawing import balanced_choice
from tasks.evaluation.judges.example_shards import LABELS, Examples, read_examples
from tasks.evaluation.judges.image_text_model import load_image_text_model
from tasks.evaluation.judges.judge_answers import ScoreCache
from tasks.evaluation.judges.judge_template import QUESTION
from tasks.evaluation.judges.vision_language_judge import load_vision_language_judge
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.evaluation.prompts.judge_prompts import prompts_of_examples
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.evaluation.scorers.scorer_choice import PROMPTS
from tasks.params.experiment_params import Params
from tasks.runtime.context import Interrupted
from tasks.stages import stage_of, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.drawing_workspace import all_bytes, run, write_workspace
from tests.helpers.tiny_vision_language import save_idefics3

SIDE = 32
CHANGES = {
    "pictures_of": ("small",),
    "ways": ("whole", "lora"),
    "path": "model",
    "prompts": 24,
    "heldout_prompts": 12,
    "images_per_prompt": 4,
    "batch_size": 4,
    "grad_accumulation": 2,
    "learning_rate": 3e-3,
    "lora_rank": 2,
    "checkpoint_every": 3,
}
LORA = (
    pytest.mark.integration,  # `make test-all` installs peft
    pytest.mark.skipif(
        find_spec("peft") is None, reason="peft is missing: pip install -e '.[lora]' -c constraints.txt"
    ),
)
WAYS = ["whole", pytest.param("lora", marks=LORA)]
RATES = {"whole": 5e-3, "lora": 2e-2}
"""Rates by which so small a model learns in a few dozen updates."""


class ScenePainter:
    """Draws scenes in the place of a trained model.

    Every second picture of a prompt says what the prompt does, if the prompt is of a task with few prompts. All others
    show anything.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.text_encoder = None

    def draw(self, prompts: list[str], images_per_prompt: int, seed: int, label: str, file: Path | None = None) -> Any:
        random = numpy_generator(seed, "scenes")
        return np.stack([[self._picture(text, i, random) for i in range(images_per_prompt)] for text in prompts])

    def _picture(self, text: str, number: int, random: np.random.Generator) -> np.ndarray:
        tag = TASK_OF.get(text)
        scene = sample_scene(random, tag)
        while number % 2 and tag is not None and scene.caption != text:
            scene = sample_scene(random, tag)
        return render(scene, SIDE)


TASK_OF = {line["prompt"]: tag for tag in ("two_object", "colors", "position") for line in seen_lines(tag)}


class LightPainter:
    """Draws light and dark pictures by turns."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.text_encoder = None

    def draw(self, prompts: list[str], images_per_prompt: int, seed: int, label: str, file: Path | None = None) -> Any:
        shades = numpy_generator(seed, "shades").integers(0, 100, (len(prompts), images_per_prompt, SIDE, SIDE, 3))
        shades[:, ::2] += 150
        return shades.astype(np.uint8)


class LightScorer:
    """Calls a light picture right, whatever its prompt."""

    name, note = "geneval", None

    def check(self, prompts: list[Prompt]) -> None:
        """Every prompt will do."""

    def score(self, line: Line, pictures: np.ndarray) -> list[Verdict]:
        return [Verdict(bool(picture.mean() > 128), "", {}) for picture in pictures]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace whose params ask for the stages."""
    monkeypatch.chdir(tmp_path)
    written = write_workspace()
    params = replace(written, judge_finetune=replace(written.judge_finetune, **CHANGES))
    monkeypatch.setattr(judge_examples, "load_painter", lambda *_: ScenePainter(params))
    yield params


@pytest.fixture
def ready(params: Params) -> Params:
    """The params of a workspace that has examples and a model."""
    run(stage_of("judge_examples", params, "small"), params)
    save_idefics3(Path("model"))
    return params


def test_neither_stage_exists_unless_params_ask_for_it(params: Params) -> None:
    named = {name for name in stages_of(params) if name.startswith(("judge_examples", "judge_finetune"))}
    assert named == {"judge_examples@small", "judge_finetune@whole", "judge_finetune@lora"}
    off = replace(params, judge_finetune=replace(params.judge_finetune, pictures_of=(), ways=()))
    assert set(stages_of(params)) - set(stages_of(off)) == named


def test_the_examples_are_labelled_by_detector_and_rules_and_balanced_in_each_task(params: Params) -> None:
    metrics, folder = run(stage_of("judge_examples", params, "small"), params)
    scorer = GenEvalScorer(SceneDetector())
    for split, count in (("train", 24), ("heldout", 12)):
        examples = read_examples(folder, split)
        assert 0 < len(examples.prompts) <= count and examples.yes_PN.shape == (len(examples.prompts), 4)
        for number, prompt in enumerate(examples.prompts):
            shown = examples.pictures.pictures(range(4 * number, 4 * number + 4))
            verdicts = [verdict.correct for verdict in scorer.score(prompt.line, shown)]
            np.testing.assert_array_equal(examples.yes_PN[number], verdicts)
            captions = {examples.pictures.caption(row) for row in range(4 * number, 4 * number + 4)}
            assert captions == {prompt.text} == {examples.prompt_of(4 * number + 3).text}
        chosen = examples.balanced
        assert len(chosen) > 0 and len(set(chosen.tolist())) == len(chosen)
        for tag in {prompt.tag for prompt in examples.prompts}:
            yes = [examples.yes_PN.flat[row] for row in chosen if examples.prompt_of(row).tag == tag]
            assert sum(yes) * 2 == len(yes)
    train = read_examples(folder, "train")
    assert metrics["examples"] == len(train.balanced) and metrics["yes_share"] == train.yes_PN.mean()
    assert all_bytes(folder) == all_bytes(run(stage_of("judge_examples", params, "small"), params, Path("again"))[1])


def test_no_prompt_is_the_evaluations_and_none_is_learned_and_measured(params: Params) -> None:
    evaluation = read_prompts(paths.SCORER / PROMPTS)
    found = prompts_of_examples(params, evaluation)
    asked, learned, measured = (
        {combination(prompt.line) for prompt in prompts} for prompts in (evaluation, found.train, found.heldout)
    )
    assert learned and measured and not learned & asked and not measured & (asked | learned)
    everything = replace(params, geneval=replace(params.geneval, prompts_per_task=10_000))
    every_prompt = [Prompt(line, seen=None) for tag in TASKS for line in lines(tag)]
    with pytest.raises(UserError, match="the evaluation asks for every combination"):
        prompts_of_examples(everything, every_prompt)


def test_the_choice_takes_as_many_right_as_wrong_of_each_task_whichever_is_rarer() -> None:
    yes_PN = np.array([[True, True, True, False], [False] * 4, [True, False, False, False], [True] * 4])
    tasks = ["colors", "position", "counting", "colors"]
    seen = set()
    for seed in range(40):
        chosen = balanced_choice(yes_PN, tasks, np.random.default_rng(seed))
        assert list(chosen) == sorted(set(chosen)) and len(chosen) == 4
        rows = [int(row) for row in chosen]
        assert 3 in rows and 8 in rows  # the one wrong picture of colors, and the one right picture of counting
        assert sum(yes_PN.flat[row] for row in rows) == 2 and not any(4 <= row < 8 for row in rows)
        seen |= set(rows)
    assert seen == {0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15}


def test_a_model_that_draws_nothing_right_is_named(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_examples, "load_painter", load_painter)
    with pytest.raises(UserError, match=r"says yes to 0% of the \d+ pictures, and no task has right and wrong ones"):
        run(stage_of("judge_examples", params, "small"), params)


def test_the_rate_is_that_of_transformers_cosine_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 2e-5)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * 250), 250)
    for step in range(250):
        assert learning_rate(2e-5, step, 250, 0.03) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        schedule.step()
    assert learning_rate(1.0, 0, 3, 0.0) == 1.0


def test_the_loss_is_minus_the_log_of_the_right_answers_probability_among_all_words() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chances = logits.softmax(dim=1)
    right = [chances[0, 2] + chances[0, 4], chances[1, 5], chances[2, 5]]
    expected = -sum(math.log(float(one)) for one in right) / 3
    assert answer_loss(logits, (True, False, False), (2, 4), (5,)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_fine_tuned_model_answers_yes_or_no_and_serves_as_the_judge(ready: Params, way: str) -> None:
    chosen = replace(ready.judge_finetune, learning_rate=RATES[way])
    metrics, folder = run(stage_of("judge_finetune", ready, way), replace(ready, judge_finetune=chosen))
    history = [float(line.split(",")[1]) for line in (folder / "history.csv").read_text().splitlines()[1:]]
    examples = read_examples(paths.JUDGE_EXAMPLES / "small", "train")
    assert len(history) == metrics["steps"] == len(examples.balanced) // 4
    assert np.mean(history[-3:]) < np.mean(history[:3]) / 2  # it has learned to answer with yes or no at all
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["auc"] == metrics["untrained_auc"] and summary["after"]["auc"] == metrics["auc"]
    assert summary["way"] == way and 0 <= summary["after"]["auc_low"] <= summary["after"]["auc_high"] <= 1
    heldout = read_examples(paths.JUDGE_EXAMPLES / "small", "heldout")
    judge = load_vision_language_judge(
        folder, cache=ScoreCache(Path("cache")), batch_size=4, time_limit=60.0, dtype="float32", device="cpu"
    )
    count = heldout.images_per_prompt
    shown = [heldout.pictures.pictures(range(i * count, i * count + count)) for i in range(len(heldout.prompts))]
    judged_PN = judge.log_yes(np.stack(shown), [prompt.text for prompt in heldout.prompts])
    model = load_image_text_model(folder, remote_code=False, dtype="float32", device="cpu")
    np.testing.assert_allclose(judged_PN, answer_scores(model, heldout, 8), atol=1e-4)  # and none is an abstention


@pytest.mark.parametrize("way", WAYS)
def test_a_fine_tune_learns_from_the_pictures_what_makes_them_right(
    params: Params, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_examples, "load_painter", lambda *_: LightPainter(params))
    monkeypatch.setattr(judge_examples, "open_scorer", lambda *_: LightScorer())
    chosen = replace(params.judge_finetune, learning_rate=RATES[way], images_per_prompt=12)
    params = replace(params, judge_finetune=chosen)
    run(stage_of("judge_examples", params, "small"), params)
    save_idefics3(Path("model"))
    metrics, _ = run(stage_of("judge_finetune", params, way), params)
    assert metrics["untrained_auc"] < 0.8 and metrics["auc"] > 0.95, metrics


@pytest.mark.parametrize("way", WAYS[1:])
def test_lora_moves_the_linear_layers_by_matrices_of_its_rank_and_nothing_else(ready: Params, way: str) -> None:
    metrics, folder = run(stage_of("judge_finetune", ready, way), ready)
    before, after = (weights(Path(one)) for one in ("model", folder))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(before[name].dim() == 2 for name in moved) and not any("embed" in name for name in moved)
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2 for name in moved)
    assert metrics["trained_parameters"] == sum(2 * sum(before[name].shape) for name in trained_by_lora(before))


def test_lora_without_its_package_says_how_to_install_it(ready: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft: pip install -e '\.\[lora\]' -c constraints\.txt"):
        run(stage_of("judge_finetune", ready, "lora"), ready)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def trained_by_lora(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The weights of linear layers, but for the head over the vocabulary."""
    apart = ("embed", "norm", "lm_head")
    return [name for name, one in tensors.items() if one.dim() == 2 and not any(word in name for word in apart)]


def test_the_whole_way_trains_every_weight(ready: Params) -> None:
    metrics, folder = run(stage_of("judge_finetune", ready, "whole"), ready)
    before, after = (weights(Path(one)) for one in ("model", folder))
    assert metrics["trained_parameters"] == sum(one.numel() for one in before.values())
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert len(still) <= 2, still  # position embeddings of places that no picture of this size has


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_fine_tune_resumes_to_the_bit(ready: Params, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of("judge_finetune", ready, way)
    metrics, whole = run(stage, ready, Path("whole"))
    assert metrics["steps"] > 5
    rmtree("state")  # what the run before left to resume from
    update = AnswerTrainer.update

    def stop_at_the_fourth(trainer: AnswerTrainer) -> float:
        loss = update(trainer)
        if trainer.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(AnswerTrainer, "update", stop_at_the_fourth)
        run(stage, ready, Path("cut"))
    made: list[int] = []
    monkeypatch.setattr(AnswerTrainer, "update", lambda trainer: made.append(trainer.step) or update(trainer))
    again, resumed = run(stage, ready, Path("resumed"))
    assert made[0] == 4 and again == metrics
    assert all_bytes(resumed) == all_bytes(whole)


def test_before_and_after_are_measured_on_the_same_held_out_pictures(ready: Params) -> None:
    still = replace(ready, judge_finetune=replace(ready.judge_finetune, learning_rate=1e-12))
    metrics, _ = run(stage_of("judge_finetune", still, "whole"), still)
    for name in ("auc", "auc_low", "auc_high"):
        assert metrics[name] == pytest.approx(metrics[f"untrained_{name}"], abs=1e-6)


def test_examples_that_are_not_there_or_broken_are_named(ready: Params) -> None:
    path = paths.JUDGE_EXAMPLES / "small" / LABELS
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"examples\.safetensors cannot be read .* run python -m tasks\.judge_examples"):
        run(stage_of("judge_finetune", ready, "whole"), ready)


def test_a_question_is_the_judges_own(ready: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    examples: Examples = read_examples(paths.JUDGE_EXAMPLES / "small", "heldout")
    model = load_image_text_model(Path("model"), remote_code=False, dtype="float32", device="cpu")
    asked: list[str] = []
    monkeypatch.setattr(
        type(model), "answer_logits", lambda _, shown, texts: asked.extend(texts) or torch.zeros(len(texts), 320)
    )
    answer_scores(model, examples, 5)
    assert asked == [QUESTION.format(prompt=prompt.text) for prompt in examples.prompts for _ in range(4)]
