"""Training resumes to the bit, stops before a bad update, saves before it obeys a signal, dies with its parent."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import load_network
from model.network import Sana
from tasks.params.reading import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.tracking.spool import SPOOLS, open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.network_config import network_config
from tasks.training.training_loop import Trainer
from tasks.training.training_state import _generations
from tests.helpers.small_workspace import PROJECT, finish, small_model, stage_process, write_encoded, write_params

CHANGES = {
    "compute.device": "cpu",
    "compute.threads": 1,
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "pretrain.depth": 2,
    "pretrain.steps": 60,
    "pretrain.batch_size": 8,
    "pretrain.grad_accumulation": 2,
    "pretrain.warmup_steps": 5,
    "pretrain.checkpoint_every": 7,
    "pretrain.evaluate_every": 10,
}


def workspace(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    write_params(folder, CHANGES | {name.replace("__", "."): value for name, value in changes.items()})
    write_encoded(folder, train=37)
    return folder


def states(folder: Path) -> list[Path]:
    found = list((folder / paths.STATE / "state" / "pretrain").glob("*"))
    return _generations(found[0]) if found else []


def wait_for_state(folder: Path, process: subprocess.Popen[str]) -> None:
    while not states(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = workspace(tmp_path_factory.mktemp("uninterrupted") / "w")
    finish(stage_process(folder, "tasks.pretrain"))
    return small_model(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_and_restarted_equals_never_stopped(
    tmp_path: Path, uninterrupted: dict[str, bytes], number: signal.Signals
) -> None:
    folder = workspace(tmp_path / "w")
    process = stage_process(folder, "tasks.pretrain")
    wait_for_state(folder, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert not (folder / paths.SMALL).exists()
    output = finish(stage_process(folder, "tasks.pretrain"))
    assert "resuming after step" in output
    assert small_model(folder) == uninterrupted


def test_a_signal_saves_the_step_it_came_in(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", pretrain__steps=4000, pretrain__checkpoint_every=4000)
    process = stage_process(folder, "tasks.pretrain")
    while not any('"metrics"' in spool.read_text() for spool in (folder / SPOOLS).glob("*.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)  # until the first losses are reported
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command to resume" in output
    assert read_json(states(folder)[0] / "state.json")["step"] > 0


def test_a_damaged_state_is_named_and_the_one_before_it_resumed(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    folder = workspace(tmp_path / "w")
    process = stage_process(folder, "tasks.pretrain")
    while len(states(folder)) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    newest = states(folder)[0] / "ema.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    output = finish(stage_process(folder, "tasks.pretrain"))
    assert "passing over a damaged training state" in output and str(newest.relative_to(folder)) in output
    assert small_model(folder) == uninterrupted


def test_state_of_other_params_is_not_resumed(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    folder = workspace(tmp_path / "w", pretrain__learning_rate=1.5e-3)
    process = stage_process(folder, "tasks.pretrain")
    wait_for_state(folder, process)
    process.kill()
    process.communicate()
    write_params(folder, CHANGES)
    output = finish(stage_process(folder, "tasks.pretrain"))
    assert "is not resumed" in output
    assert small_model(folder) == uninterrupted


def test_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", pretrain__learning_rate=1e30, pretrain__checkpoint_every=1)
    process = stage_process(folder, "tasks.pretrain")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no update was made" in output and "Traceback" not in output
    for tensor in load_file(states(folder)[-1] / "network.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_a_stage_dies_with_its_parent(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", pretrain__steps=100000, pretrain__checkpoint_every=100000)
    script = (
        "import os, subprocess, sys, time\n"
        "os.environ['SANA15_PARENT_PID'] = str(os.getpid())\n"
        "print(subprocess.Popen([sys.executable, '-m', 'tasks.pretrain'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    while not (folder / paths.STATE / "building" / "pretrain").exists():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    weights = []
    for parts in (1, 4):
        folder = workspace(
            tmp_path / str(parts),
            pretrain__grad_accumulation=parts,
            pretrain__steps=5,
            pretrain__optimizer="adamw",
            compute__dtype="float32",
        )
        finish(stage_process(folder, "tasks.pretrain"))
        weights.append(load_network(folder / paths.SMALL).state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def test_training_lowers_the_held_out_loss(uninterrupted: dict[str, bytes]) -> None:
    rows = uninterrupted["heldout.csv"].decode().splitlines()
    first, last = (float(row.split(",")[2]) for row in (rows[1], rows[-1]))
    assert last < first


def test_without_averaging_the_last_weights_are_saved(tmp_path: Path) -> None:
    saved = []
    for number, decay in enumerate((0.0, 1e-30)):  # so small a decay leaves nothing of what was before
        folder = workspace(tmp_path / str(number), pretrain__steps=8, pretrain__ema_decay=decay)
        finish(stage_process(folder, "tasks.pretrain"))
        saved.append(small_model(folder)["model.safetensors"])
        average = load_file(states(folder)[0] / "ema.safetensors") if states(folder) else {}
        assert decay or not average
    assert saved[0] == saved[1]


@pytest.mark.parametrize("in_backward", [False, True], ids=["ordinary", "in_backward"])
def test_bfloat16_weights_are_trained_and_resumed_to_the_bit(tmp_path: Path, in_backward: bool) -> None:
    changes = {"pretrain__weights": "bfloat16", "pretrain__ema_decay": 0.0, "pretrain__clip_norm": None}
    if in_backward:
        changes |= {"pretrain__step_in_backward": True, "pretrain__grad_accumulation": 1}
    whole, cut = (workspace(tmp_path / name, pretrain__steps=30, **changes) for name in ("whole", "cut"))
    finish(stage_process(whole, "tasks.pretrain"))
    process = stage_process(cut, "tasks.pretrain")
    wait_for_state(cut, process)
    process.kill()
    process.communicate()
    assert states(cut), "it was done before it could be killed"
    assert "resuming after step" in finish(stage_process(cut, "tasks.pretrain"))
    assert small_model(cut) == small_model(whole)
    tensors = load_file(whole / paths.SMALL / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    first, *_, last = small_model(whole)["heldout.csv"].decode().splitlines()[1:]
    assert float(last.split(",")[2]) < float(first.split(",")[2])


def test_steps_in_the_backward_pass_end_where_ordinary_ones_do(tmp_path: Path) -> None:
    saved = []
    for chosen in (False, True):
        changes = {"pretrain__grad_accumulation": 1, "pretrain__clip_norm": None, "pretrain__steps": 12}
        folder = workspace(tmp_path / str(chosen), pretrain__step_in_backward=chosen, **changes)
        finish(stage_process(folder, "tasks.pretrain"))
        saved.append(load_network(folder / paths.SMALL).state_dict())
        rows = small_model(folder)["history.csv"].decode().splitlines()
        assert rows[1].endswith(",") == chosen  # the gradient's norm is not known
    for name, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_in_a_step_in_backward_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"pretrain__grad_accumulation": 1, "pretrain__clip_norm": None, "pretrain__checkpoint_every": 2}
    folder = workspace(tmp_path / "w", pretrain__step_in_backward=True, pretrain__steps=6, **changes)
    monkeypatch.chdir(folder)
    params = load_params()
    (folder / "out").mkdir()
    with closing(open_spool(SPOOLS, "pretrain", tags={})) as spool:
        context = Context("pretrain", params, folder / "out", folder / "state", Tracker(spool), "cpu", 1)
        torch.manual_seed(0)
        network = Sana(network_config(params.network, 2, 3, 6))
        trainer = Trainer(context, network, paths.ENCODED, params.pretrain)
        update = trainer.update

        def update_that_breaks() -> float:
            if trainer.step == 3:
                network.blocks[1].attn.qkv.weight.register_hook(lambda gradient: gradient * float("nan"))
            return update()

        trainer.update = update_that_breaks
        with pytest.raises(UserError) as error:
            trainer.run()
        said = "step 3: the gradient of blocks.1.attn.qkv.weight is not finite"
        assert str(error.value).startswith(said) and "\n" not in str(error.value)
        again = Trainer(context, Sana(network.config), paths.ENCODED, params.pretrain)
        assert again.step == 2
        assert all(parameter.isfinite().all() for parameter in again.network.parameters())
