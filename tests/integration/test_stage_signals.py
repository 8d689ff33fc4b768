"""A stage whose process is killed, told to stop or left by its parent: nothing is lost, and nothing goes on alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.system import paths
from tasks.system.files import read_json
from tasks.tracking.report_spool import SPOOLS
from tasks.training.generation_writer import generations
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.small_workspace import PROJECT, finish, small_model, stage_process, write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES


def workspace(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    write_params(folder, CHANGES | {name.replace("__", "."): value for name, value in changes.items()})
    write_encoded(folder, train=SAMPLES)
    return folder


def states(folder: Path) -> list[Path]:
    found = list((folder / paths.STATE / "state" / "pretrain").glob("*"))
    return generations(found[0]) if found else []


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
    process.communicate(timeout=PATIENCE_SECONDS)
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
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command to resume" in output
    assert read_json(states(folder)[0] / "state.json")["step"] > 0


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


def test_a_stage_dies_with_its_parent(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", pretrain__steps=100000, pretrain__checkpoint_every=100000)
    script = (
        "import os, subprocess, sys, time\n"
        "os.environ['SANA15_PARENT_PID'] = str(os.getpid())\n"
        "print(subprocess.Popen([sys.executable, '-m', 'tasks.pretrain'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(3000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    wait_for((folder / paths.STATE / "building" / "pretrain").exists, "the stage to begin")
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "the stage to end")
