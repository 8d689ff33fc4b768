"""An exported model draws in diffusers what it draws here, and its card tells lineage, scores and terms."""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import SanaPipeline

from model.numerics import Numerics
from model.text_encoder import instruction_text
from tasks.computing.seeds import generator
from tasks.evaluation.detectors.detector import NOTES
from tasks.evaluation.scorer_labels import SCORER_MEANINGS
from tasks.evaluation.scorers.matching_scorer import NOTE
from tasks.export import heldout_loss, lineage, main, scores
from tasks.generate import open_painter
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, load_params, read_yaml
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.files import write_json
from tasks.system.manifest import MANIFEST, sha256_file, write_manifest
from tests.helpers.drawing_workspace import run, write_workspace


@pytest.fixture(autouse=True)
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """A workspace, and a tracker of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield write_workspace()


def test_an_exported_model_draws_in_diffusers_what_it_draws_here() -> None:
    values = apply_overrides(
        read_yaml(PARAMS_FILE), {"shard.image_size": 32}, "test"
    )  # diffusers draws no smaller ones
    PARAMS_FILE.write_text(yaml.safe_dump(values), encoding="utf-8")
    params = load_params()
    main(["--model", "grown", "--out", "exported"])
    painter = open_painter(paths.GROWN, params)
    prompts = ["a photo of a red circle", "a photo of two rings"]
    ours = painter.draw(prompts, 1, 7, "test")[:, 0]
    noise = torch.stack(
        [torch.randn(painter.latent_shape, generator=generator(7, "picture", number, 0)) for number in range(2)]
    )
    pipeline = SanaPipeline.from_pretrained("exported", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompts,
        latents=noise,
        height=params.shard.image_size,
        width=params.shard.image_size,
        num_inference_steps=params.sampling.steps,
        guidance_scale=params.sampling.guidance,
        max_sequence_length=params.text_encoder.max_tokens,
        complex_human_instruction=None,
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert theirs.std() > 0.01
    assert np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1


def test_the_card_tells_lineage_scores_and_terms(params: Params) -> None:
    for folder in (paths.GROWN, paths.AUTOENCODER):
        write_manifest(folder)
    paths.GROWN_INIT.mkdir(exist_ok=True)
    write_json(paths.GROWN_INIT / "growth.json", {"chosen": {"strategy": "partial_preservation", "drop": 1}})
    run(stage_of("evaluate", params, "grown"), params)
    score = json.loads((paths.EVALUATION / "grown/summary.json").read_text())["score"]
    main(["--model", "grown", "--out", "exported"])
    card = Path("exported/README.md").read_text(encoding="utf-8")
    for folder in (paths.GROWN, paths.AUTOENCODER):
        assert sha256_file(folder / MANIFEST) in card
    assert "grown by partial preservation, 1 last blocks dropped" in card
    assert f"| overall | {score['overall']:.3f} [{score['low']:.3f}, {score['high']:.3f}] |" in card
    assert card.count("\n| ") == 1 + 1 + len(score["tasks"])
    assert f"### GenEval's rules on rendered scenes\n\nThe score is the {SCORER_MEANINGS['geneval']}.\n" in card
    assert "NSCL v2-custom" in card and "Gemma terms of use" in card


@pytest.mark.parametrize("numerics", ["nvlabs", "diffusers"])
def test_the_code_on_the_card_has_the_instruction_that_the_model_was_trained_with(numerics: Numerics) -> None:
    reading = json.loads((paths.TEXT_ENCODER / "reading.json").read_text())
    write_json(paths.TEXT_ENCODER / "reading.json", reading | {"instruction": "sana", "numerics": numerics})
    main(["--model", "grown", "--out", "exported"])
    text = Path("exported/README.md").read_text(encoding="utf-8")
    lines = ast.literal_eval(text.partition("instruction = ")[2].partition("\npipeline(")[0])
    assert "\n".join(lines) == instruction_text("sana", numerics)


def test_the_card_of_a_model_fine_tuned_on_chosen_pairs_names_what_it_was_made_of_and_the_data_set() -> None:
    model = paths.model_folder("sft-pruned-2")
    shutil.copytree(paths.GROWN, model)
    paths.model_folder("pruned-2").mkdir(exist_ok=True)
    write_json(paths.model_folder("pruned-2") / "pruning.json", {"kept": [0, 2]})
    lines = lineage(model)
    assert "* `pruned-2`, fine-tuned on the data set `encoded`" in lines
    assert "* cut from `grown` by block importance, blocks 0, 2 kept" in lines


def test_scores_are_headed_by_their_scorer_and_its_meaning() -> None:
    score = {"overall": 0.5, "low": 0.4, "high": 0.6}
    tasks = {"matching": {"value": 0.5, "low": 0.4, "high": 0.6}}
    summary = {"scorer": "matching", "prompts": 8, "pictures_per_prompt": 2, "score": score | {"tasks": tasks}}
    write_json(paths.EVALUATION / "grown/summary.json", summary)
    write_json(paths.SCORER / "summary.json", {"scorer": "matching", "note": NOTE})
    text = "\n".join(scores(paths.GROWN))
    assert text.startswith(f"### Matching\n\nThe score is the {SCORER_MEANINGS['matching']}.\n")
    assert text.count("0.500 [0.400, 0.600]") == 1, "the score of one task is the whole score"
    assert "GenEval" not in text.replace(SCORER_MEANINGS["matching"], "").replace(NOTE, "")
    write_json(paths.EVALUATION / "grown/summary.json", summary | {"scorer": "geneval"})
    about = {"scorer": "geneval", "detector": "mask2former", "note": NOTES["mask2former"]}
    write_json(paths.SCORER / "summary.json", about)
    text = "\n".join(scores(paths.GROWN))
    assert text.startswith("### GenEval\n") and str(NOTES["mask2former"]) in text


def test_the_card_tells_the_held_out_loss_with_its_interval() -> None:
    assert heldout_loss(paths.GROWN) == []
    write_json(paths.GROWN / "metrics.json", {"heldout_loss": 0.41234})
    assert heldout_loss(paths.GROWN)[0] == "Flow-matching loss on held-out pictures: 0.4123."
    ends = {"heldout_loss_low": 0.4, "heldout_loss_high": 0.42}
    write_json(paths.GROWN / "metrics.json", {"heldout_loss": 0.41234} | ends)
    assert "0.4123 [0.4000, 0.4200], a 95 % interval over samples." in heldout_loss(paths.GROWN)[0]


def test_a_model_without_a_judge_is_exported() -> None:
    shutil.rmtree(paths.JUDGE)
    main(["--model", "grown", "--out", "exported"])
    assert SanaPipeline.from_pretrained("exported", local_files_only=True).transformer.config.num_layers == 3


def test_a_folder_that_exists_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model", "grown", "--out", "outputs"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "export: --out outputs exists: name a new folder\n"
