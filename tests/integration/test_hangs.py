"""Stages that hang, launched as users do: the rank that stands still is named, and the stage resumes from its state."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.runtime.hang_rules import PULSE_LOST_SECONDS
from tasks.system import paths
from tasks.training.generation_writer import generations
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT, finish, small_model, stage_process, write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what the watcher asks for")

STILL_SECONDS = PULSE_LOST_SECONDS + 5
LIMITS = f"""
import tasks.runtime.hang_watch as watch
from functools import partial
watch.Limits = partial(watch.Limits, still={STILL_SECONDS}, look=0.2)
"""
"""It makes the least time without a step shorter, so that the tests need not wait for 45 seconds."""
HANGING = """
import ctypes, os
def hang():
    if {kind!r} == 'lock':
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second call never returns, and PyDLL keeps the GIL meanwhile
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    elif {kind!r} == 'read':
        os.mkfifo('pipe')
        open('pipe')
if os.environ.get('RANK', '0') == '{rank}' and not os.path.exists('hung') and {kind!r}:
    from tasks.training.training_loop import Trainer
    update = Trainer.update
    def update_that_hangs(trainer):
        if trainer.step == 40 and not os.path.exists('hung'):
            open('hung', 'w').close()
            hang()
        return update(trainer)
    Trainer.update = update_that_hangs
"""
"""It makes step 40 of one rank hang, the first time that it is made in a folder."""


def workspace(folder: Path, processes: int, kind: str = "", rank: int = 1) -> Path:
    """A workspace whose pretraining makes a step of `rank` hang, by a call that holds the `lock` or a `read`."""
    folder.mkdir()
    more = {"compute.processes_per_node": processes, "pretrain.steps": 80, "network.hidden_size": 32}
    write_params(folder, CHANGES | more)
    write_encoded(folder, train=SAMPLES)
    (folder / "sitecustomize.py").write_text(LIMITS + HANGING.format(kind=kind, rank=rank))
    return folder


def begun(folder: Path) -> subprocess.Popen[str]:
    """The pretraining of a workspace."""
    return stage_process(folder, "tasks.pretrain", PYTHONPATH=f"{folder}{os.pathsep}{PROJECT}")


def processes_of(folder: Path) -> dict[int, int]:
    """The processes of a workspace's ranks, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            variables = dict(one.partition(b"=")[::2] for one in (process / "environ").read_bytes().split(b"\0"))
            here = (process / "cwd").resolve() == folder.resolve()
        except OSError:
            continue  # it has ended
        if here and b"tasks.runtime.rank_worker" in arguments:
            found[int(variables[b"RANK"])] = int(process.name)
    return found


def wait_for_state(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    """Return when a state of this step or a later one is saved."""
    while not any(f"step-{step:08d}" <= path.name for path in states(folder)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def states(folder: Path) -> list[Path]:
    """The saved states, newest first."""
    found = list((folder / paths.STATE / "state" / "pretrain").glob("*"))
    return generations(found[0]) if found else []


def check_stacks(folder: Path, ranks: int) -> None:
    """Every rank's stacks are kept."""
    found = sorted((folder / paths.hang_stacks("pretrain")).glob("*/rank-*.txt"))
    assert [path.name for path in found] == [f"rank-{rank}.txt" for rank in range(ranks)]
    assert all("most recent call first" in path.read_text() for path in found)


def test_a_stopped_rank_is_named_and_the_stage_resumes_to_the_bit(tmp_path: Path) -> None:
    undisturbed, folder = workspace(tmp_path / "undisturbed", 2), workspace(tmp_path / "stopped", 2)
    process = begun(folder)
    wait_for_state(folder, process, 28)  # the pace of steps is known
    os.kill(processes_of(folder)[1], signal.SIGSTOP)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    line = output.splitlines()[-1]
    assert line.startswith("pretrain: rank 1 of 2 stands still: it is stopped, as by SIGSTOP; no step for "), output
    assert not processes_of(folder)
    check_stacks(folder, 2)
    assert "resuming after step" in finish(begun(folder))
    finish(begun(undisturbed))
    assert small_model(folder) == small_model(undisturbed)


@pytest.mark.parametrize(
    ("kind", "why"), [("lock", "a call holds Python's lock (GIL) at "), ("read", "it is at ")], ids=("lock", "read")
)
def test_a_rank_that_others_wait_for_in_a_collective_is_named_with_what_it_does(
    tmp_path: Path, kind: str, why: str
) -> None:
    folder = workspace(tmp_path / "w", 2, kind)
    process = begun(folder)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    line = output.splitlines()[-1]
    assert line.startswith(f"pretrain: rank 1 of 2 stands still: {why}") and " in hang; " in line, output
    check_stacks(folder, 2)
    assert "resuming after step" in finish(begun(folder))


def test_a_single_process_that_hangs_is_killed_and_resumes(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", 1, "lock", rank=0)
    process = begun(folder)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGKILL
    line = output.splitlines()[-1]
    assert line.startswith("pretrain: no step for ") and "a call holds Python's lock (GIL) at " in line, output
    check_stacks(folder, 1)
    assert "resuming after step" in finish(begun(folder))
