"""Sixty pictures of one's own become models, which draw without a judge; then a scored family, without a detector."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from flows.building.stage_graph import stages_until
from flows.building.workspace import merged_params
from tasks.evaluation.scorer_labels import SCORER_MEANINGS
from tasks.evaluation.scorers.matching_scorer import NOTE
from tasks.params.params_files import load_params
from tasks.runtime.stage_run import run_stage
from tasks.stages import stages_of
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR
from tests.helpers.whole_pipeline import BIN, Clone, new_clone, new_origin

PICTURES = 60
MODELS = ("small", "grown", "pruned-3", "pruned-2", "finetuned-3", "finetuned-2")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone after a run until finetune, and what the run said. No file of the evaluation is there."""
    own = {"shard.source": "folder", "shard.path": "pictures"}
    root = tmp_path_factory.mktemp("origin")
    clone = new_clone(new_origin(root, merged_params(PROJECT, "smoke", own)), tmp_path_factory.mktemp("clone"))
    write_pictures(clone.root / "pictures")
    done = clone.python("-m", "flows.full_pipeline", "--until", "finetune")
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, done.stderr


def write_pictures(folder: Path, count: int = PICTURES) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"noise of number {number}")


def test_the_run_makes_all_models_and_neither_judge_nor_report(stopped: tuple[Clone, str]) -> None:
    clone, said = stopped
    assert all((clone.root / "outputs" / model / "model.safetensors").is_file() for model in MODELS)
    assert not (clone.root / "outputs/judge").exists() and not (clone.root / "results/report.html").exists()
    assert "different captions held out: 30, fewer than importance.prompts 100" in said


def test_its_last_lines_name_the_models_and_the_next_commands(stopped: tuple[Clone, str]) -> None:
    models, draw, go_on = stopped[1].splitlines()[-3:]
    assert models.endswith("models: " + ", ".join(f"outputs/{model}" for model in MODELS))
    assert draw.endswith("to draw: python -m tasks.generate 'your prompt' --model outputs/finetuned-2 --n 1")
    assert go_on.endswith("to run the other stages: python -m flows.full_pipeline")


def test_a_model_draws_one_picture_and_is_exported_without_a_judge(stopped: tuple[Clone, str]) -> None:
    clone, _said = stopped
    drawn = clone.python("-m", "tasks.generate", "a prompt", "--model", "finetuned-2", "--n", "1", "--out", "drawn")
    assert drawn.returncode == 0 and (clone.root / "drawn/00000/0000.png").is_file(), drawn.stderr
    exported = clone.python("-m", "tasks.export", "--model", "finetuned-2", "--out", "exported")
    assert exported.returncode == 0 and (clone.root / "exported/model_index.json").is_file(), exported.stderr
    asked = clone.python("-m", "tasks.generate", "a prompt", "--model", "finetuned-2", "--n", "2", "--out", "asked")
    assert asked.returncode == 2 and "--no-judge" in asked.stderr


def test_dvc_goes_on_where_the_run_stopped(stopped: tuple[Clone, str]) -> None:
    clone, _said = stopped
    done = clone.run(str(BIN / "dvc"), "repro", "finetune@3", "finetune@2")
    assert done.returncode == 0 and "Running stage" not in done.stdout, done.stdout + done.stderr


def test_the_whole_flow_scores_sixty_pictures_by_matching_and_nothing_is_called_geneval(
    stopped: tuple[Clone, str],
) -> None:
    clone, _said = stopped
    done = clone.python("-m", "flows.full_pipeline")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((clone.root / "results/summary.json").read_text())
    assert summary["scorer"]["name"] == "matching" and {"ceiling", "shuffled"} <= summary["scorer"].keys()
    assert [model["name"] for model in summary["models"]] == list(MODELS[:2]) + [
        f"{kind}-{depth}" for depth in (3, 2) for kind in ("pruned", "finetuned")
    ]
    for model in summary["models"]:
        assert model["scorer"] == "matching" and set(model["score"]["tasks"]) == {"matching"}
        assert model["heldout_loss_low"] < model["heldout_loss"] < model["heldout_loss_high"]
        assert model["distance"]["low"] < model["distance"]["high"] and model["seconds_per_picture"] > 0
    page = (clone.root / "results/report.html").read_text(encoding="utf-8")
    for shown in (page, done.stdout):
        assert "Matching" in shown
        assert "GenEval" not in shown.replace(SCORER_MEANINGS["matching"], "").replace(NOTE, "")
    drawn = clone.python("-m", "tasks.generate", "a prompt", "--model", "finetuned-2", "--n", "3", "--out", "judged")
    assert drawn.returncode == 0 and "log P(yes)" in drawn.stdout, drawn.stderr


@pytest.mark.parametrize(("pictures", "buckets"), [(2, False), (9, True)])
def test_every_stage_up_to_the_fine_tuned_models_works_on_fewer_pictures_than_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, buckets: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_spool(SPOOLS, "test", tags={})) as spool:
        monkeypatch.setenv(SPOOL_VARIABLE, str(spool.path))
    own = PUBLISHED_DETECTOR | {"shard.source": "folder", "shard.path": "pictures", "shard.aspect_buckets": buckets}
    values = merged_params(PROJECT, "smoke", own | {"shard.image_size": 128 if buckets else 32})
    Path("params.yaml").write_text(yaml.safe_dump(values))
    write_pictures(Path("pictures"), pictures)
    params = load_params()
    assert pictures < params.finetune.batch_size
    for name in stages_until(["finetune"], params, "until"):
        metrics = run_stage(stages_of(params)[name], params)
        if name == "importance":
            assert metrics["prompts"] == pictures // 2
    assert all(Path("outputs", model, "model.safetensors").is_file() for model in MODELS)
