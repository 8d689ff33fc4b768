"""Claims about the judge: it learns what the scorer says, from the picture and the prompt, one picture at a time."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.text_encoder import Reading, TextEncoder, build_text_encoder, train_tokenizer
from tasks.data.picture_dataset import to_unit_range
from tasks.data.scene_vocabulary import TASKS, combination, is_held_out, lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, load_judge, log_yes, save_judge
from tasks.evaluation.judges.judge_training import LabelledPictures, judge_loss, train_judge
from tasks.evaluation.judges.labelled_examples import choose_prompts
from tasks.evaluation.judges.roc_area import area_under_curve, measure
from tasks.evaluation.picture_scoring import score_pictures
from tasks.evaluation.prompts.evaluation_prompts import Prompt, evaluation_prompts
from tasks.evaluation.prompts.judge_prompts import unseen_prompts
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.system.errors import UserError

CHANNELS = 16
PROMPTS = [line["prompt"] for task in TASKS for line in lines(task)[:6]]


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    """An untrained text encoder over the scenes' words."""
    torch.manual_seed(0)
    return build_text_encoder(train_tokenizer(PROMPTS, 300), CHANNELS, 1, 2, Reading(16, "none", "diffusers", "stored"))


def new_judge(seed: int = 0, width: int = 48) -> JudgeNetwork:
    torch.manual_seed(seed)
    return JudgeNetwork(JudgeConfig(CHANNELS, width=width, readings=4, vector=64)).eval()


def scenes(count: int, tag: str | None = None, seed: int = 0, size: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([render(sample_scene(rng, tag), size) for _ in range(count)])


def test_judge_learns_the_scorers_verdict_on_pictures_it_has_not_seen(text_encoder: TextEncoder) -> None:
    colours = {"red": (220, 25, 30), "blue": (40, 70, 220)}
    rng = np.random.default_rng(0)

    def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(2, size=count)
        ground = np.full((count, 16, 16, 3), 172, np.uint8)
        for picture, which in zip(ground, chosen, strict=True):
            y, x = rng.integers(0, 10, 2)
            picture[y : y + 6, x : x + 6] = list(colours.values())[which]
        return ground, np.eye(2, dtype=bool)[chosen]

    drawn, yes = pictures(64)
    data = LabelledPictures(drawn, rng.integers(2, size=64), yes)
    lines_of = {line["prompt"]: line for line in lines("colors")}
    prompts = [f"a photo of a {colour} square" for colour in colours]
    asked_for = [Prompt(lines_of[prompt], seen=True) for prompt in prompts]
    judge = new_judge()
    untrained = new_judge()
    defaults = load_params(Path(__file__).parents[3] / PARAMS_FILE).judge
    training = replace(defaults, steps=40, batch_size=16, learning_rate=2e-3)
    history = train_judge(judge, data, asked_for, text_encoder.encode(prompts), training, 0, "float32")
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    tested, yes = pictures(40)
    asked = np.repeat(np.arange(2), 20)
    right = np.take_along_axis(yes, asked[:, None], 1).reshape(2, 20)
    scores = log_yes(judge, text_encoder, tested.reshape(2, 20, 16, 16, 3), prompts)
    control = log_yes(untrained, text_encoder, tested.reshape(2, 20, 16, 16, 3), prompts)
    assert area_under_curve(scores, right) > 0.95
    assert abs(area_under_curve(control, right) - 0.5) < 0.3


def test_score_does_not_depend_on_the_rest_of_the_batch(text_encoder: TextEncoder) -> None:
    judge, pictures = new_judge(), scenes(6)
    together = log_yes(judge, text_encoder, pictures.reshape(2, 3, 32, 32, 3), PROMPTS[:2])
    for prompt in range(2):
        for number in range(3):
            alone = log_yes(judge, text_encoder, pictures[None, None, 3 * prompt + number], [PROMPTS[prompt]])
            assert alone[0, 0] == pytest.approx(together[prompt, number], abs=1e-5)


def test_score_is_the_logarithm_of_a_probability_of_yes(text_encoder: TextEncoder) -> None:
    judge, pictures = new_judge(), scenes(3)
    text = text_encoder.encode([PROMPTS[4]])[0][None]
    logits = judge(to_unit_range(pictures), text, torch.ones(text.shape[:2], dtype=torch.bool))[:, 0]
    expected = [math.log(1 / (1 + math.exp(-logit))) for logit in logits.tolist()]
    np.testing.assert_allclose(log_yes(judge, text_encoder, pictures[None], [PROMPTS[4]])[0], expected, rtol=1e-6)


def test_padding_of_a_prompt_changes_nothing() -> None:
    judge, pictures = new_judge(), to_unit_range(scenes(2))
    text = torch.randn(1, 5, CHANNELS, generator=torch.Generator().manual_seed(0))
    longer = torch.cat([text, torch.full((1, 3, CHANNELS), 9.0)], dim=1)
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(judge(pictures, longer, mask), judge(pictures, text, mask[:, :5]))


@pytest.mark.parametrize("size", [16, 48])
def test_judge_reads_pictures_of_other_sizes(size: int, text_encoder: TextEncoder) -> None:
    scores = log_yes(new_judge(), text_encoder, scenes(2, size=size)[None], PROMPTS[:1])
    assert scores.shape == (1, 2) and np.isfinite(scores).all()


def test_every_picture_is_labelled_for_every_prompt_as_the_scorer_does() -> None:
    chosen = [line for task in TASKS for line in lines(task)[::101]]
    pictures, detector = scenes(12), SceneDetector()
    yes = GenEvalScorer(detector).label(pictures, chosen)
    assert yes.any() and not yes.all()
    for column, line in zip(yes.T, chosen, strict=True):
        assert column.tolist() == [verdict.correct for verdict in score_pictures(line, pictures, detector)]


def test_every_second_picture_of_the_shards_is_asked_what_is_true_of_it() -> None:
    rng = np.random.default_rng(0)
    yes = rng.random((200, 50)) < 0.02
    asked = choose_prompts(yes, rng)
    some = yes.any(axis=1)
    assert yes[np.arange(0, 200, 2), asked[::2]].tolist() == some[::2].tolist()
    assert 0 < (yes[np.arange(1, 200, 2), asked[1::2]]).mean() < 0.2


def test_loss_is_that_of_the_own_prompts_and_balances_yes_and_no_of_each_other() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, generator=random, dtype=torch.float64)
    yes = torch.tensor([[True, False, True, False, True], [False, False, False, True, True]])
    share = torch.tensor([0.25, 0.5, 0.1], dtype=torch.float64)
    own, balanced = 0.0, 0.0
    for i in range(2):
        for j in range(5):
            probability = 1 / (1 + math.exp(-logits[i, j].item()))
            loss = -math.log(probability if yes[i, j] else 1 - probability)
            if j >= 2:
                part = share[j - 2].item()
                balanced += loss * 0.5 / (part if yes[i, j] else 1 - part) / 6
            own += loss / 2 if i == j else 0.0
    assert judge_loss(logits, yes, share).item() == pytest.approx(own + balanced, rel=1e-9)


def test_area_under_curve_counts_pairs_and_halves_ties() -> None:
    rng = np.random.default_rng(0)
    scores, yes = rng.integers(0, 4, 30).astype(float), rng.random(30) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[yes] for b in scores[~yes]]
    assert area_under_curve(scores, yes) == pytest.approx(np.mean(pairs))
    assert math.isnan(area_under_curve(scores, np.ones(30, bool)))


def test_quality_that_is_undefined_is_left_out() -> None:
    rng = np.random.default_rng(0)
    assert measure(rng.normal(size=(2, 2)), np.zeros((2, 2), bool), 20, rng) == {}
    perfect = measure(np.array([[2.0, 1.0], [5.0, 3.0]]), np.array([[True, False]] * 2), 20, rng)
    assert perfect["auc"] == 0.75 and perfect["auc_within_prompts"] == 1.0
    assert 0 <= perfect["auc_low"] <= 0.75 <= perfect["auc_high"] <= 1


def test_prompts_of_the_judges_test_are_held_out_and_not_the_evaluations() -> None:
    evaluation = evaluation_prompts(0, 20)
    taken = {combination(prompt.line) for prompt in evaluation}
    prompts = unseen_prompts(0, 60, evaluation)
    assert len({prompt.text for prompt in prompts}) == 60 and all(is_held_out(prompt.line) for prompt in prompts)
    for prompt in prompts:  # two_object and colors have no held-out combination that the evaluation does not use
        assert combination(prompt.line) not in taken or prompt.tag in ("two_object", "colors")
    assert {prompt.tag for prompt in prompts} == {"two_object", "colors", "position", "color_attr"}


def test_saved_judge_gives_the_same_scores_and_bytes(tmp_path: Path, text_encoder: TextEncoder) -> None:
    judge, pictures = new_judge(3), scenes(2)[None]
    save_judge(judge, tmp_path)
    first = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_judge(tmp_path)
    np.testing.assert_array_equal(
        log_yes(judge, text_encoder, pictures, PROMPTS[:1]), log_yes(loaded, text_encoder, pictures, PROMPTS[:1])
    )
    save_judge(loaded, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_missing_or_other_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no judge: run python -m tasks\.judge"):
        load_judge(tmp_path)
    save_judge(new_judge(), tmp_path)
    (tmp_path / "config.json").write_text('{"caption_channels": 8}')
    with pytest.raises(UserError, match=r"does not fit the judge"):
        load_judge(tmp_path)
