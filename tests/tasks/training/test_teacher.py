"""A cut model that learns from the uncut one: what the losses are, and that the stage comes nearer to its teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_network, save_network
from model.network import Sana
from model.pruning import prune_network
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.params_files import load_params
from tasks.stages import stage_of
from tasks.system import paths
from tasks.training.teacher import TaughtLoss, Teacher, taught_blocks
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, predicted_velocity, training_batch
from tests.helpers.drawing_workspace import all_bytes, run
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params

DEPTH, KEPT = 5, [0, 2, 3]
STATE = Path("state")
CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "pretrain.depth": 2,
    "grow.depth": DEPTH,
    "prune.depths": [len(KEPT)],
    "finetune.steps": 30,
    "finetune.batch_size": 8,
    "finetune.optimizer": "adamw",
    "finetune.learning_rate": 5e-3,
    "finetune.warmup_steps": 0,
    "finetune.checkpoint_every": 12,
    "finetune.evaluate_every": 15,
    "finetune.ema_decay": 0.5,
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=37)
    grown = small_network(DEPTH, seed=1)
    cut = paths.model_folder(f"pruned-{len(KEPT)}")
    for folder, network in ((paths.GROWN, grown), (cut, prune_network(grown, KEPT))):
        folder.mkdir()
        save_network(network, folder)
    (cut / "pruning.json").write_text(json.dumps({"kept": KEPT}), encoding="utf-8")


def a_batch(size: int = 6) -> NoisedBatch:
    write_params(Path.cwd(), CHANGES)
    dataset = EncodedDataset(paths.ENCODED, "train")
    return training_batch(dataset, load_params().diffusion, "diffusers", 3, 0, size)


def finetune(out: str, teacher: str, *, resume: bool = False, **changes: object) -> Path:
    """The folder that the stage writes; where it is to resume it finds the states of the training before."""
    if not resume:
        shutil.rmtree(STATE, ignore_errors=True)
    write_params(Path.cwd(), CHANGES | {"finetune.teacher": teacher} | {f"finetune.{k}": v for k, v in changes.items()})
    params = load_params()
    return run(stage_of("finetune", params, len(KEPT)), params, Path(out))[1]


def without_effect(network: Sana, block: int) -> None:
    """Make a block pass its tokens on as they are."""
    with torch.no_grad():
        for layer in (
            network.blocks[block].attn.proj,
            network.blocks[block].cross_attn.proj,
            network.blocks[block].mlp.point_conv.conv,
        ):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()


def blocks_by_hand(network: Sana, batch: NoisedBatch) -> list[Tensor]:
    """The tokens behind each block."""
    text = network.encode_text(batch.text_BTE, batch.mask_BT)
    sigma = batch.sigma_B[:, None, None, None]
    noised = (1 - sigma) * batch.latents_BCHW + sigma * batch.noise_BCHW
    tokens, _, time, size = network.embed(noised, batch.sigma_B * 1000)
    found = []
    for block, keys_values in zip(network.blocks, text.keys_values, strict=True):
        tokens = block(tokens, time, keys_values, text.mask_BT, size)
        found.append(tokens)
    return found


def test_a_kept_block_is_taught_what_the_removed_blocks_behind_it_did() -> None:
    assert taught_blocks([0, 2, 3], 8) == [1, 2, 7]
    assert taught_blocks([1, 4], 5) == [3, 4]
    assert taught_blocks(range(4), 4) == [0, 1, 2, 3]


def test_a_cut_that_changes_nothing_has_nothing_to_learn() -> None:
    grown, batch = small_network(DEPTH, seed=1), a_batch()
    for removed in set(range(DEPTH)) - set(KEPT):
        without_effect(grown, removed)
    cut = prune_network(grown, KEPT)
    teacher = Teacher(grown, taught_blocks(KEPT, DEPTH))
    torch.testing.assert_close(TaughtLoss(cut)(batch, teacher.lesson(batch)), torch.zeros(6), rtol=0, atol=1e-9)
    # against the wrong blocks it would have
    wrong = Teacher(grown, [0, 1, 2]).lesson(batch)
    assert TaughtLoss(cut)(batch, wrong).min() > 1e-3


def test_the_loss_is_the_error_of_the_velocity_and_the_mean_relative_error_of_the_blocks() -> None:
    grown, batch = load_network(paths.GROWN), a_batch()
    cut = prune_network(grown, KEPT)
    with torch.no_grad():
        own, taught = blocks_by_hand(cut, batch), blocks_by_hand(grown, batch)
        error = (predicted_velocity(cut, batch) - predicted_velocity(grown, batch)).square().mean((1, 2, 3))
        blocks = [
            (own[place] - taught[block]).square().mean((1, 2)) / taught[block].square().mean((1, 2))
            for place, block in enumerate((1, 2, 4))
        ]
        velocity = TaughtLoss(cut)(batch, Teacher(grown).lesson(batch))
        features = TaughtLoss(cut)(batch, Teacher(grown, taught_blocks(KEPT, DEPTH)).lesson(batch))
    torch.testing.assert_close(velocity, error)
    torch.testing.assert_close(features, error + sum(blocks) / 3)


def test_without_a_lesson_the_loss_is_the_data_s() -> None:
    cut, batch = small_network(3), a_batch()
    assert torch.equal(TaughtLoss(cut)(batch), FlowMatchingLoss(cut)(batch))


def test_a_sample_has_the_same_loss_in_any_batch() -> None:
    grown, batch = load_network(paths.GROWN), a_batch()
    cut, teacher = prune_network(grown, KEPT), Teacher(grown, taught_blocks(KEPT, DEPTH))
    whole = TaughtLoss(cut)(batch, teacher.lesson(batch))
    for part in range(3):
        own = batch.part(part, 3, "cpu")
        torch.testing.assert_close(TaughtLoss(cut)(own, teacher.lesson(own)), whole.chunk(3)[part])


@pytest.mark.parametrize("kind", ["velocity", "features"])
def test_the_stage_comes_nearer_to_its_teacher_and_leaves_the_teacher_alone(kind: str) -> None:
    before, batch = all_bytes(paths.GROWN), a_batch(96)  # of few samples the distance hangs on their noise levels
    grown = load_network(paths.GROWN)

    def distance(folder: Path) -> float:
        with torch.no_grad():
            cut = load_network(folder)
            return TaughtLoss(cut)(batch, Teacher(grown).lesson(batch)).mean().item()

    tuned = distance(finetune("taught", kind))
    assert tuned < 0.7 * distance(paths.model_folder(f"pruned-{len(KEPT)}"))
    assert tuned < distance(finetune("by data", "none"))
    assert all_bytes(paths.GROWN) == before


@pytest.mark.parametrize("kind", ["velocity", "features"])
def test_a_run_with_a_teacher_resumes_to_the_bit(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = finetune("whole", kind)
    shutil.rmtree(max(STATE.glob("step-*")))  # the last, so the run goes on after step 24
    again = finetune("again", kind, resume=True)
    assert "resuming after step 24" in capsys.readouterr().out
    assert all_bytes(again) == all_bytes(whole)
