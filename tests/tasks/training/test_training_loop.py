"""Training resumes to the bit after it broke off, passes over what is damaged, and stops before a bad update.

`tests/integration/test_stage_signals.py` says the same of stages whose processes are killed or told to stop.
"""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import load_network
from tasks.params.params_files import load_params
from tasks.stages import stage_of
from tasks.system.errors import UserError
from tasks.system.manifest import verify_manifest
from tasks.training import generation_writer
from tasks.training.generation_writer import generations
from tasks.training.training_loop import Trainer
from tests.helpers.drawing_workspace import all_bytes, run
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

STATE = Path("state")
PLAIN = {"pretrain.clip_norm": None, "pretrain.grad_accumulation": 1}
"""What steps in the backward pass ask for."""


class BrokenOff(Exception):
    """The training ends here, as if its process had been killed."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    return tmp_path


def train(out: str, *, resume: bool = False, **changes: object) -> Path:
    """The folder that stage `pretrain` writes; where it is to resume it finds the states of the training before."""
    if not resume:
        shutil.rmtree(STATE, ignore_errors=True)
    write_params(Path.cwd(), CHANGES | {name.replace("__", "."): value for name, value in changes.items()})
    params = load_params()
    return run(stage_of("pretrain", params), params, Path(out))[1]


def breaking_off_at(step: int) -> Callable[[Trainer], None]:
    """`Trainer.update`, but for this step, in which the training breaks off."""
    update = Trainer.update

    def breaking(trainer: Trainer) -> None:
        if trainer.step == step:
            raise BrokenOff
        update(trainer)

    return breaking


def break_off(step: int, **changes: object) -> None:
    """Train up to a step, and leave the states that were saved until then."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(Trainer, "update", breaking_off_at(step))
        train("broken off", **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_network(folder).state_dict()


def heldout_losses(folder: Path) -> list[float]:
    return [float(row.split(",")[2]) for row in (folder / "heldout.csv").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_encoded(folder, train=SAMPLES)
        return folder / train("out")


def test_training_lowers_the_held_out_loss(uninterrupted: Path) -> None:
    first, *_, last = heldout_losses(uninterrupted)
    assert last < first


def test_broken_off_and_begun_again_equals_never_broken_off(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_off(12)
    again = train("again", resume=True)
    assert "resuming after step 7" in capsys.readouterr().out
    assert all_bytes(again) == all_bytes(uninterrupted)


def test_a_damaged_state_is_named_and_the_one_before_it_resumed(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_off(16)
    newest, *before = generations(STATE)
    assert before
    damaged = bytearray((newest / "ema.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newest / "ema.safetensors").write_bytes(damaged)
    again = train("again", resume=True)
    said = capsys.readouterr().out
    assert "passing over a damaged training state" in said and str(newest / "ema.safetensors") in said
    assert "resuming after step 7" in said
    assert all_bytes(again) == all_bytes(uninterrupted)


def test_training_goes_on_while_a_state_is_written_and_ends_the_same(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, write_files, released = Trainer.update, generation_writer.write_files, Event()

    def update_that_releases(trainer: Trainer) -> float:
        if trainer.step == 12:
            assert not generations(STATE)  # the state of step 7 has not been written, and five steps were made
            released.set()
        return update(trainer)

    def wait_and_write(folder: Path, files: generation_writer.Files) -> dict[str, generation_writer.Entry]:
        assert released.wait(PATIENCE_SECONDS)
        return write_files(folder, files)

    monkeypatch.setattr(Trainer, "update", update_that_releases)
    monkeypatch.setattr(generation_writer, "write_files", wait_and_write)
    assert all_bytes(train("out")) == all_bytes(uninterrupted)
    assert released.is_set()


def test_a_full_disk_ends_the_training_with_one_line_and_leaves_the_states_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_hashed = generation_writer.write_hashed

    def write_until_full(path: Path, parts: Sequence[bytes | memoryview]) -> generation_writer.Entry:
        if generations(STATE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_hashed(path, parts)

    monkeypatch.setattr(generation_writer, "write_hashed", write_until_full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)") as error:
        train("out")
    assert "\n" not in str(error.value)
    (left,) = generations(STATE)
    assert left.name == "step-00000007" and verify_manifest(left)


def test_non_finite_loss_stops_before_the_update() -> None:
    with pytest.raises(UserError, match="no update was made"):
        train("out", pretrain__learning_rate=1e30, pretrain__checkpoint_every=1)
    for tensor in load_file(generations(STATE)[-1] / "network.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_a_gradient_that_is_not_finite_in_a_step_in_backward_leaves_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = Trainer.update

    def update_that_breaks(trainer: Trainer) -> None:
        if trainer.step == 3:
            trainer.network.blocks[1].attn.qkv.weight.register_hook(lambda gradient: gradient * float("nan"))
        update(trainer)

    monkeypatch.setattr(Trainer, "update", update_that_breaks)
    with pytest.raises(UserError) as error:
        train("out", **PLAIN, pretrain__checkpoint_every=2, pretrain__step_in_backward=True)
    said = "step 3: the gradient of blocks.1.attn.qkv.weight is not finite"
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    newest, *_ = generations(STATE)
    assert newest.name.endswith("2")
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "network.safetensors").values())


def test_accumulated_micro_batches_equal_one_batch() -> None:
    short = {"pretrain.steps": 5, "pretrain.optimizer": "adamw", "compute.dtype": "float32"}
    whole = weights(train("whole", **short, pretrain__grad_accumulation=1))
    for name, tensor in weights(train("parts", **short, pretrain__grad_accumulation=4)).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


def test_without_averaging_the_last_weights_are_saved() -> None:
    without = train("without", pretrain__steps=8, pretrain__ema_decay=0.0)
    assert not load_file(generations(STATE)[0] / "ema.safetensors")
    # so small a decay leaves nothing of what was before
    least = train("least", pretrain__steps=8, pretrain__ema_decay=1e-30)
    assert (without / "model.safetensors").read_bytes() == (least / "model.safetensors").read_bytes()


@pytest.mark.parametrize("in_backward", [False, True], ids=["ordinary", "in_backward"])
def test_bfloat16_weights_are_trained_and_resumed_to_the_bit(
    in_backward: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"pretrain.weights": "bfloat16", "pretrain.ema_decay": 0.0, "pretrain.clip_norm": None}
    if in_backward:
        changes |= PLAIN | {"pretrain.step_in_backward": True}
    whole = train("whole", **changes, pretrain__steps=30)
    break_off(12, **changes, pretrain__steps=30)
    cut = train("cut", resume=True, **changes, pretrain__steps=30)
    assert "resuming after step 7" in capsys.readouterr().out
    assert all_bytes(cut) == all_bytes(whole)
    assert {tensor.dtype for tensor in load_file(whole / "model.safetensors").values()} == {torch.bfloat16}
    first, *_, last = heldout_losses(whole)
    assert last < first


def test_steps_in_the_backward_pass_end_where_ordinary_ones_do() -> None:
    saved = []
    for chosen in (False, True):
        out = train(f"in backward {chosen}", **PLAIN, pretrain__steps=6, pretrain__step_in_backward=chosen)
        saved.append(weights(out))
        rows = (out / "history.csv").read_text().splitlines()
        assert rows[1].endswith(",") == chosen  # the gradient's norm is not known
    for name, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][name], tensor, rtol=1e-5, atol=1e-6)
