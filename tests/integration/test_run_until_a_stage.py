"""Sixty pictures of one's own become fine-tuned models that draw and are exported, though there is no judge."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.building.workspace import merged_params
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR
from tests.helpers.whole_pipeline import BIN, Clone, new_clone, new_origin

PICTURES = 60
MODELS = ("small", "grown", "pruned-3", "pruned-2", "finetuned-3", "finetuned-2")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone after a run until finetune, and what the run said. No file of the evaluation is there."""
    own = PUBLISHED_DETECTOR | {"shard.source": "folder", "shard.path": "pictures"}
    root = tmp_path_factory.mktemp("origin")
    clone = new_clone(new_origin(root, merged_params(PROJECT, "smoke", own)), tmp_path_factory.mktemp("clone"))
    write_pictures(clone.root / "pictures")
    done = clone.python("-m", "flows.full_pipeline", "--until", "finetune")
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, done.stderr


def write_pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(PICTURES):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"noise of number {number}")


def test_the_run_makes_all_models_and_neither_judge_nor_report(stopped: tuple[Clone, str]) -> None:
    clone, said = stopped
    assert all((clone.root / "outputs" / model / "model.safetensors").is_file() for model in MODELS)
    assert not (clone.root / "outputs/judge").exists() and not (clone.root / "results/report.html").exists()
    assert "different captions held out: 30, fewer than importance.prompts 100" in said


def test_its_last_lines_name_the_models_and_the_next_command(stopped: tuple[Clone, str]) -> None:
    models, following = stopped[1].splitlines()[-2:]
    assert models.endswith("models: " + ", ".join(f"outputs/{model}" for model in MODELS))
    assert "python -m tasks.generate 'your prompt' --model outputs/finetuned-2 --n 1" in following


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
