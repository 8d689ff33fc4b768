"""States that a thread writes hold what the training held when they were taken, whatever happens afterwards.

`test_training_loop.py` says that a training goes on meanwhile, and `tests/integration/test_ranks.py` what several ranks
save together.
"""

import mmap
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.manifest import MANIFEST, verify_manifest, write_hashed, write_manifest
from tasks.training import generation_writer
from tasks.training.ema import Ema
from tasks.training.generation_writer import GenerationWriter, generations
from tasks.training.host_snapshot import HostSnapshot
from tasks.training.training_state import History, StateWriter, load_state, make_state, save_state
from tests.helpers.patience import PATIENCE_SECONDS
from tests.kernels.processes import run_processes

KILLS = 100
SEED = 16


class Training(NamedTuple):
    """What a state is taken of."""

    network: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer

    @classmethod
    def minute(cls) -> "Training":
        """A network of 4,680 weights, with its average and AdamW's state."""
        network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        training = cls(network, Ema(network, 0.9), torch.optim.AdamW(network.parameters()))
        make_state(training.optimizer)
        return training

    def tensors(self) -> Iterator[Tensor]:
        yield from self.network.state_dict().values()
        yield from self.ema.average
        for state in self.optimizer.state.values():
            yield from state.values()

    def fill(self, value: float) -> None:
        """Give every number of the state one value, as a step does that changes all of them."""
        for tensor in self.tensors():
            tensor.fill_(value)

    def values(self) -> set[float]:
        return {value for tensor in self.tensors() for value in tensor.unique().tolist()}


def loaded(folder: Path) -> tuple[int, set[float]]:
    """The step of the newest state, and the values in it."""
    training = Training.minute()
    return load_state(folder, *training)[0], training.values()


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Until it is set, no file of a state is written."""
    event, write_files = Event(), generation_writer.write_files

    def wait_and_write(folder: Path, files: generation_writer.Files) -> dict[str, generation_writer.Entry]:
        assert event.wait(PATIENCE_SECONDS)
        return write_files(folder, files)

    monkeypatch.setattr(generation_writer, "write_files", wait_and_write)
    return event


def test_steps_after_a_snapshot_do_not_change_what_is_written(tmp_path: Path, released: Event) -> None:
    training, writer = Training.minute(), StateWriter(tmp_path)
    training.fill(1.0)
    history = History(recent=[0.5])
    writer.save(1, *training, history)
    training.fill(2.0)  # reached although nothing has been written, so the copy is all that a training waits for
    history.recent.append(0.25)
    assert not generations(tmp_path)
    released.set()
    writer.wait()
    assert loaded(tmp_path) == (1, {1.0})
    assert load_state(tmp_path, *Training.minute())[1].recent == [0.5]


def test_the_next_snapshot_waits_for_the_writer_and_takes_the_same_memory(tmp_path: Path) -> None:
    training, writer = Training.minute(), StateWriter(tmp_path)
    places = []
    for step in range(1, 5):
        training.fill(float(step))
        writer.save(step, *training, History())
        places.append({name: buffer.data_ptr() for name, buffer in writer.snapshot.buffers.items()})
        whole = [path.name for path in generations(tmp_path)]
        assert f"step-{step - 1:08d}" in whole or step == 1
    writer.wait()
    assert places[1:] == places[:-1]
    assert [path.name for path in generations(tmp_path)] == ["step-00000004", "step-00000003"]
    assert loaded(tmp_path) == (4, {4.0})


def test_a_file_of_a_snapshot_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (3, 5), generator=generator, dtype=torch.uint8)
    numbers = torch.randn(7, 3, generator=generator)
    tensors = {
        "a codes": codes,
        "halves": numbers.bfloat16(),
        "turned": numbers.t(),
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "doubles": numbers.double(),
        "counts": torch.arange(5),
        "flags": codes[0] > 100,
    }
    snapshot = HostSnapshot()
    entry = write_hashed(tmp_path / "tensors", snapshot.take("tensors", tensors, {"said": "so"}))
    write_manifest(tmp_path)
    assert read_json(tmp_path / MANIFEST)["files"]["tensors"] == entry
    found = load_file(tmp_path / "tensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with safe_open(tmp_path / "tensors", "pt") as file:
        assert file.metadata() == {"said": "so"}


# killed, failed, left


def test_kill_9_at_100_random_moments_of_asynchronous_writing_loses_nothing(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance, folder, in_the_middle = random.Random(SEED), tmp_path / "states", 0
    with mmap.mmap(-1, 16) as shared, memoryview(shared).cast("q") as progress:
        for _ in range(KILLS):
            child = os.fork()
            if child == 0:
                save_for_ever(folder, progress)
            wait_for_saves(child, progress, chance.randint(1, 3))
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            in_the_middle += (folder / "building").exists()
            for generation in generations(folder)[: generation_writer.KEPT_GENERATIONS]:
                verify_manifest(generation)
            step, values = loaded(folder)
            assert step >= progress[1]
            assert step == 0 or values == {float(step)}
            progress[0] = 0
    assert step >= KILLS / 2 and in_the_middle >= KILLS / 4


def save_for_ever(folder: Path, progress: memoryview) -> None:
    """Save states of growing steps, in this forked process, until it is killed.

    `progress` are the number of saves that this process has begun, and the last step that was whole on disk.
    """
    try:
        torch.set_num_threads(1)
        training, writer = Training.minute(), StateWriter(folder)
        first, _ = load_state(folder, *training)
        for step in count(first + 1):
            training.fill(float(step))  # while the state before is being written
            writer.save(step, *training, History())
            progress[1] = step - 1
            progress[0] += 1
    finally:
        os._exit(1)


def wait_for_saves(child: int, progress: memoryview, number: int) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while progress[0] < number:
        assert time.monotonic() < until and os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("noticed", ["check", "begin", "wait"])
def test_a_disk_that_takes_no_more_is_told_in_one_line_and_the_state_before_is_whole(
    tmp_path: Path, noticed: str
) -> None:
    training, writer = Training.minute(), StateWriter(tmp_path)
    training.fill(1.0)
    writer.save(1, *training, History())
    writer.wait()
    with files_of_at_most(4096):
        writer.save(2, *training, History())
        assert writer.thread is not None
        writer.thread.join()
    with pytest.raises(UserError) as error, writer:
        getattr(writer, noticed)()
    said = f"{tmp_path}/building/network.safetensors: the training state could not be written (File too large): "
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert loaded(tmp_path) == (1, {1.0})


def test_an_error_of_training_waits_for_the_state_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files = generation_writer.write_files

    def write_slowly(folder: Path, files: generation_writer.Files) -> dict[str, generation_writer.Entry]:
        time.sleep(0.3)
        return write_files(folder, files)

    monkeypatch.setattr(generation_writer, "write_files", write_slowly)
    training = Training.minute()
    training.fill(1.0)
    with pytest.raises(ZeroDivisionError), StateWriter(tmp_path) as writer:
        writer.save(1, *training, History())
        raise ZeroDivisionError
    assert loaded(tmp_path) == (1, {1.0})


def test_an_error_of_training_does_not_hide_one_of_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), files_of_at_most(4096), StateWriter(tmp_path) as writer:
        writer.save(1, *Training.minute(), History())
        raise ZeroDivisionError
    assert "the training state could not be written (File too large)" in capsys.readouterr().out


# several ranks


def writers_of_two(folder: Path) -> tuple[GenerationWriter, GenerationWriter]:
    """What two ranks have of one folder, in this process."""
    first, second = GenerationWriter(folder), GenerationWriter(folder)
    first.world_size = second.world_size = 2
    second.rank = 1
    first.begin()
    return first, second


def nothing() -> None:
    """What is to be awaited before tensors in the memory of the host can be written."""


def test_a_generation_of_two_ranks_is_whole_when_both_have_written(tmp_path: Path) -> None:
    first, second = writers_of_two(tmp_path)
    first.start(1, {"state": [b"of both"]}, nothing)
    first.own_files.wait()
    time.sleep(3 * generation_writer.LOOK_SECONDS)
    assert not generations(tmp_path)
    second.start(1, {"rows": [b"of one"]}, nothing)
    first.wait()
    second.wait()
    (whole,) = generations(tmp_path)
    assert read_json(whole / MANIFEST)["files"].keys() == {"state", "rows"}
    assert {path.name for path in whole.iterdir()} == {"state", "rows", MANIFEST}
    verify_manifest(whole)


def test_a_rank_that_dies_leaves_the_generation_before_and_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_writer, "AFTER_ERROR_SECONDS", 0.2)
    save_state(tmp_path, 1, *(training := Training.minute()), History())
    first, _ = writers_of_two(tmp_path)
    first.start(2, {"state": [b"of both"]}, nothing)
    thread = first.thread
    with pytest.raises(ZeroDivisionError), first:
        raise ZeroDivisionError  # as gloo's error is raised when the other rank is gone
    assert thread is not None
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert [path.name for path in generations(tmp_path)] == ["step-00000001"]
    assert load_state(tmp_path, *training)[0] == 1


def save_rows_of_which_there_are_two_copies(folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    network = nn.Linear(2, 5, bias=False)
    mesh = init_device_mesh("cpu", (2, 2))
    network.weight = nn.Parameter(distribute_tensor(torch.arange(10.0).view(5, 2), mesh, [Replicate(), Shard(0)]))
    save_state(folder / "states", 1, network, Ema(network, 0.0), torch.optim.SGD(network.parameters(), 0.1), History())


def test_rows_that_several_ranks_hold_are_saved_once(tmp_path: Path) -> None:
    run_processes(4, tmp_path, save_rows_of_which_there_are_two_copies)
    network = nn.Linear(2, 5, bias=False)
    step, _ = load_state(tmp_path / "states", network, Ema(network, 0.0), torch.optim.SGD(network.parameters(), 0.1))
    assert step == 1 and torch.equal(network.weight, torch.arange(10.0).view(5, 2))
    assert len(list(tmp_path.glob("states/step-*/rows-*"))) == 2
