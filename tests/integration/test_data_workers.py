"""A stage whose batches are read by workers ends, goes on and fails as one that reads them itself, and in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.system import paths
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.small_workspace import PROJECT, finish, small_model, stage_process, write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

LONG = {"pretrain.steps": 100_000, "pretrain.evaluate_every": 100_000, "pretrain.checkpoint_every": 3}


def workspace(folder: Path, changes: dict[str, object]) -> Path:
    folder.mkdir()
    write_params(folder, CHANGES | {"compute.data_workers": 2} | changes)
    write_encoded(folder, train=SAMPLES)
    return folder


def started(folder: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """The stage in a process group of its own, and its workers, once it has saved a state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.pretrain"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not list((folder / paths.STATE / "state" / "pretrain").glob("*/*/state.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()  # the watcher of hangs is another
    workers = [child for child in children if child.name() == "pt_data_worker"]
    assert len(workers) == 2
    return process, workers


def ended(process: subprocess.Popen[str], workers: list[psutil.Process]) -> str:
    """All that a stage printed. The pipe is at its end when the workers are gone too."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    wait_for(lambda: not any(worker.is_running() for worker in workers), "the workers to end")
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_step_and_training_goes_on_to_the_same_bytes(
    tmp_path: Path, number: signal.Signals
) -> None:
    alone = workspace(tmp_path / "alone", {"compute.data_workers": 0})
    finish(stage_process(alone, "tasks.pretrain"))
    folder = workspace(tmp_path / "workers", {"pretrain.checkpoint_every": 1})
    process, workers = started(folder)
    os.killpg(process.pid, number)
    assert "run the same command to resume" in ended(process, workers)
    assert process.returncode == 128 + number
    write_params(folder, CHANGES | {"pretrain.checkpoint_every": 1, "compute.data_workers": 1})
    assert "resuming after step" in finish(stage_process(folder, "tasks.pretrain"))
    assert small_model(folder)["model.safetensors"] == small_model(alone)["model.safetensors"]


def test_a_worker_that_is_killed_ends_the_stage_with_one_line(tmp_path: Path) -> None:
    process, workers = started(workspace(tmp_path / "w", LONG))
    workers[1].kill()
    output = ended(process, workers)
    assert process.returncode == 1
    (line,) = [line for line in output.splitlines() if str(workers[1].pid) in line]
    assert line.startswith("pretrain: step ") and line.endswith("run again to go on from the last checkpoint")


def test_workers_die_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    process, workers = started(workspace(tmp_path / "w", LONG))
    process.kill()
    ended(process, workers)
