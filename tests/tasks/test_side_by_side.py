"""Side by side, models draw from the same noise what `generate` draws, and the judge's scores and choice are kept."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.text_encoder import load_text_encoder
from tasks.evaluation import picture_drawing
from tasks.evaluation.judges.judge_network import load_judge, log_yes
from tasks.evaluation.prompts.evaluation_prompts import Prompt, write_prompts
from tasks.generate import main, picture_record
from tasks.params.params_files import load_params
from tasks.side_by_side import (
    PROMPT_OF_SCENES,
    DrawnByModel,
    OfferedModel,
    Wish,
    draw_side_by_side,
    find_outputs,
    first_prompt,
    offered_models,
    zip_of,
)
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.drawing_workspace import write_workspace

PROMPT = "a photo of a red circle"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace with the models small, grown and pruned-2."""
    monkeypatch.chdir(tmp_path)
    write_workspace()


def wish(*names: str, pictures: int = 3, seed: int = 5) -> Wish:
    """A wish for these models."""
    models = {model.name: model for model in offered_models(paths.OUTPUTS)}
    return Wish(PROMPT, tuple(models[name] for name in names), pictures, seed, steps=2, guidance=2.0)


def drawn(asked: Wish) -> list[DrawnByModel]:
    """What the models draw."""
    return list(draw_side_by_side(asked, lambda _line, _part: None))


def test_the_finished_models_of_an_experiment_are_offered_in_the_order_in_which_they_are_made() -> None:
    for name in ("finetuned-2", "finetuned-10", "pruned-10", "grown_init", "champion"):
        shutil.copytree(paths.OUTPUTS / "pruned-2", paths.OUTPUTS / name)
    for name in ("finetuned-10", "pruned-10"):
        config = json.loads((paths.OUTPUTS / name / "config.json").read_text())
        (paths.OUTPUTS / name / "config.json").write_text(json.dumps(config | {"depth": 10}))
    (paths.OUTPUTS / "pruned-4").mkdir()
    shutil.copy(paths.OUTPUTS / "grown" / "config.json", paths.OUTPUTS / "pruned-4")
    models = offered_models(paths.OUTPUTS)
    names = ["small", "grown", "pruned-10", "finetuned-10", "pruned-2", "finetuned-2"]
    assert [model.name for model in models] == names
    assert [model.depth for model in models] == [1, 3, 10, 10, 2, 2]
    assert models[0].size == f"1 block · {models[0].parameters / 1e6:.2f} M parameters"
    assert models[0].parameters < models[4].parameters < models[1].parameters


def test_a_model_fine_tuned_on_chosen_pairs_is_offered_behind_the_model_that_it_was_made_of() -> None:
    for name, source in (("sft-grown", "grown"), ("finetuned-2", "pruned-2"), ("sft-finetuned-2", "pruned-2")):
        shutil.copytree(paths.OUTPUTS / source, paths.OUTPUTS / name)
    names = ["small", "grown", "sft-grown", "pruned-2", "finetuned-2", "sft-finetuned-2"]
    assert [model.name for model in offered_models(paths.OUTPUTS)] == names


def test_an_experiment_is_named_by_its_folder_or_by_its_outputs() -> None:
    shutil.copytree(paths.OUTPUTS, "runs/smoke/outputs")
    for name in ("runs/smoke", "runs/smoke/outputs"):
        assert find_outputs(Path(name)) == Path("runs/smoke/outputs")
    with pytest.raises(UserError, match="runs/other/outputs is no folder"):
        find_outputs(Path("runs/other"))
    Path("empty/outputs").mkdir(parents=True)
    with pytest.raises(UserError, match="empty/outputs has no finished model"):
        offered_models(find_outputs(Path("empty")))


def test_the_first_prompt_is_a_held_out_caption_of_own_pictures() -> None:
    params = load_params()
    own = replace(params, shard=replace(params.shard, source="folder", path="pictures"))
    shutil.rmtree(paths.SCORER, ignore_errors=True)
    assert (first_prompt(paths.OUTPUTS, params), first_prompt(paths.OUTPUTS, own)) == (PROMPT_OF_SCENES, "")
    paths.SCORER.mkdir(parents=True)
    captions = ("a picture of a red apple", "a picture of a boat")
    lines = [{"prompt": caption, "tag": "matching", "include": []} for caption in captions]
    write_prompts(paths.SCORER / "prompts.json", [Prompt(line, seen=None) for line in lines])
    assert first_prompt(paths.OUTPUTS, own) == captions[0]
    assert first_prompt(paths.OUTPUTS, params) == PROMPT_OF_SCENES


@pytest.fixture
def samplings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The noise and the options of each call of the sampler, which computes as ever."""
    calls: list[dict[str, Any]] = []
    sample = picture_drawing.sample

    def recording(network, noise_BCHW, *others, **options):
        calls.append({"noise": noise_BCHW.numpy().copy(), **options})
        return sample(network, noise_BCHW, *others, **options)

    monkeypatch.setattr(picture_drawing, "sample", recording)
    return calls


def test_all_models_start_from_the_same_noise_and_another_seed_gives_another(samplings: list[dict[str, Any]]) -> None:
    small, grown, pruned = drawn(wish("small", "grown", "pruned-2"))
    drawn(wish("small", seed=6))
    first, *same, other = [call["noise"] for call in samplings]
    assert len(same) == 2
    for noise in same:
        np.testing.assert_array_equal(noise, first)
    assert not np.array_equal(other, first)
    assert not np.array_equal(small.pictures_NHW3, grown.pictures_NHW3)
    assert not np.array_equal(grown.pictures_NHW3, pruned.pictures_NHW3)


def test_the_pictures_are_those_that_generate_draws_with_the_same_seed() -> None:
    for one in drawn(wish("small", "grown")):
        main([PROMPT, "--model", one.model.name, "--n", "3", "--seed", "5", "--out", one.model.name])
        for number, picture in enumerate(one.pictures_NHW3):
            np.testing.assert_array_equal(np.asarray(Image.open(f"{one.model.name}/00000/{number:04}.png")), picture)


def test_steps_and_guidance_are_those_of_the_wish(samplings: list[dict[str, Any]]) -> None:
    drawn(replace(wish("grown"), steps=3, guidance=9.0))
    assert [(call["steps"], call["guidance"]) for call in samplings] == [(3, 9.0)]


def test_the_judge_scores_every_picture_and_its_choice_is_the_best() -> None:
    for one in drawn(wish("small", "grown", pictures=5)):
        judge, text_encoder = load_judge(paths.JUDGE), load_text_encoder(paths.TEXT_ENCODER)
        again = log_yes(judge, text_encoder, one.pictures_NHW3[None], [PROMPT])[0]
        np.testing.assert_allclose(one.scores_N, again, atol=1e-6)
        assert one.chosen == int(np.argmax(again))
        assert one.seconds > 0


def test_without_a_judge_there_are_no_scores_and_the_first_picture_is_chosen() -> None:
    with_judge = drawn(wish("small"))[0]
    shutil.rmtree(paths.JUDGE)
    without = drawn(wish("small"))[0]
    assert (without.scores_N, without.chosen, without.score_text(1)) == (None, 0, "")
    np.testing.assert_array_equal(without.pictures_NHW3, with_judge.pictures_NHW3)


def test_the_zip_has_every_picture_and_the_scores_best_first() -> None:
    asked = wish("small", "grown")
    every = drawn(asked)
    with zipfile.ZipFile(io.BytesIO(zip_of(asked, every))) as archive:
        record = json.loads(archive.read("scores.json"))
        assert {name: record[name] for name in ("prompt", "seed", "steps", "guidance")} == {
            "prompt": PROMPT,
            "seed": 5,
            "steps": 2,
            "guidance": 2.0,
        }
        assert set(archive.namelist()) == {"scores.json"} | {
            f"{m}/000{i}.png" for m in ("small", "grown") for i in (0, 1, 2)
        }
        for one in every:
            rows = record["models"][one.model.name]
            assert rows[0]["file"] == f"{one.model.name}/{one.chosen:04}.png"
            assert [row["log_yes"] for row in rows] == sorted(one.scores_N, reverse=True)
            for number, picture in enumerate(one.pictures_NHW3):
                with Image.open(archive.open(f"{one.model.name}/{number:04}.png")) as image:
                    np.testing.assert_array_equal(np.asarray(image), picture)


def test_a_picture_on_which_the_judge_abstains_has_no_score_and_is_not_chosen() -> None:
    scores_N = np.array([np.nan, -2.0])
    assert picture_record(["a.png", "b.png"], scores_N, 0) == {"file": "a.png"}
    one = DrawnByModel(OfferedModel(Path("small"), 1, 10), np.zeros((2, 4, 4, 3), np.uint8), scores_N, 1.0)
    assert (one.chosen, one.score_text(0), one.score_text(1)) == (1, "abstained", "-2.00")
    with zipfile.ZipFile(io.BytesIO(zip_of(wish("small"), [one]))) as archive:
        rows = json.loads(archive.read("scores.json"))["models"]["small"]
    assert rows == [{"file": "small/0001.png", "log_yes": -2.0}, {"file": "small/0000.png"}]


def test_progress_grows_from_nothing_to_all_of_the_work_and_names_the_model() -> None:
    told: list[tuple[str, float]] = []
    list(draw_side_by_side(wish("small", "grown"), lambda line, part: told.append((line, part))))
    parts = [part for _, part in told]
    assert parts[0] == 0.0 and parts[-1] == 1.0 and parts == sorted(parts)
    assert [line for line, _ in told] == [
        f"{name}: {doing}" for name in ("small", "grown") for doing in ("loading", "drawing", "drawing", "judging")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"models": ()}, "no model is ticked"),
        ({"pictures": 0}, "pictures is 0"),
        ({"pictures": 65}, "pictures is 65"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
    ],
)
def test_a_wish_that_does_not_fit_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(wish("small"), **change)


@pytest.mark.parametrize("name", ["autoencoder", "text_encoder"])
def test_a_missing_encoder_is_named_with_the_command_that_makes_it(name: str) -> None:
    asked = wish("small")
    shutil.rmtree(paths.OUTPUTS / name)
    with pytest.raises(UserError, match=f"has no {name} beside it: run python -m tasks.{name}"):
        drawn(asked)
