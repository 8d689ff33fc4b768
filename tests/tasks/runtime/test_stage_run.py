"""A stage runs once at a time in a folder, and its state belongs to its code, params and inputs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kernels import kernel_choice
from kernels.optimizers import build_optimizer
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, load_params, read_yaml
from tasks.runtime.stage_run import run_stage
from tasks.runtime.torch_setup import configure_torch
from tasks.stages import stage_of
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.paths import BUILDING
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_networks import small_batch, small_network
from tests.helpers.small_workspace import PROJECT, write_params

MEMORY_DISK = Path("/dev/shm")


def test_a_stage_that_another_process_runs_here_is_refused_with_its_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    held = "with exclusive_lock(Path('.sana15/locks/train'), 'x'):\n    print('held', flush=True)\n    sys.stdin.read()"
    code = f"import sys\nfrom pathlib import Path\nfrom tasks.system.file_locks import exclusive_lock\n{held}"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"^train is being run in this folder by process {holder.pid}: wait for it"):
        run_stage(stage_of("train", load_params()), load_params())
    holder.kill()
    holder.wait()
    with exclusive_lock(Path(".sana15/locks/train"), "train is held"):
        pass  # the system let go of it with the process


def test_triton_where_it_cannot_run_stops_a_stage_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), {"compute.device": "cpu"}, "test")
    params = build_params(apply_overrides(values, {"compute.kernels": "triton"}, "test"), "test")
    monkeypatch.setattr(kernel_choice, "INTERPRETED", False)
    with pytest.raises(UserError) as error:
        configure_torch(params, threads=1)
    asked = "params.yaml: compute.kernels: triton was asked for, but cannot run on cpu here"
    assert str(error.value) == f"{asked}: take auto or reference"


def fills_of_a_step() -> int:
    """How many times a training step of a small network fills memory."""
    network = small_network(2)
    latents, noise, text, mask = small_batch()
    loss, optimizer = FlowMatchingLoss(network), build_optimizer("came8bit", network.parameters(), 1e-4, 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        loss(NoisedBatch(latents, noise, torch.full((3,), 0.5), text, mask)).mean().backward()
        optimizer.step()
    return sum(event.count for event in profiled.key_averages() if event.key == "aten::fill_")


def test_a_stage_is_deterministic_without_filling_all_new_memory() -> None:
    try:
        torch.set_deterministic_debug_mode("default")
        plain = fills_of_a_step()
        configure_torch(load_params(PROJECT / PARAMS_FILE), threads=1)
        assert torch.are_deterministic_algorithms_enabled()
        assert fills_of_a_step() == plain
    finally:
        torch.set_deterministic_debug_mode("default")


def test_a_stage_whose_output_is_in_place_is_not_stopped_any_more(tmp_path: Path) -> None:
    write_params(tmp_path, {"shard.train_samples": 8, "shard.heldout_samples": 8, "shard.image_size": 16})
    imports = "import os, signal\nfrom tasks.runtime import stage_command, stage_run\n"
    told = "stage_run.record_cost = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
    code = f"{imports}{told}stage_command.stage_command('shard', None, [])"
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 0


def small_shards(folder: Path) -> None:
    write_params(folder, {"shard.train_samples": 8, "shard.heldout_samples": 8, "shard.image_size": 16})


def test_outputs_may_lie_on_another_disk_by_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    if not MEMORY_DISK.is_dir() or MEMORY_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{MEMORY_DISK} is no disk of its own here")
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as disk:
        Path("outputs").symlink_to(disk)
        for _ in range(2):  # into an empty place, and over an earlier output
            run_stage(stage_of("shard", load_params()), load_params())
            assert (Path(disk) / "shards" / "manifest.json").is_file()
            assert not list((Path(disk) / BUILDING).iterdir())


def test_an_output_that_is_a_symbolic_link_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    Path("outputs/shards").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"^outputs/shards is a symbolic link: make it a folder, and link outputs"):
        run_stage(stage_of("shard", load_params()), load_params())
