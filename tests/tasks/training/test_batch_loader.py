"""Worker processes hand training the batches that it would read itself, and end with it."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME, EncodedDataset
from tasks.data.npy_arrays import to_npy
from tasks.data.sample_order import rank_rows
from tasks.data.shards import Sample, describe, write_index, write_split
from tasks.params.network_params import Diffusion
from tasks.system import paths
from tasks.system.errors import UserError, WorkerDied
from tasks.training.batch_loader import BatchLoader, MicroBatches, packed
from tasks.training.training_batch import DrawnBatch, NoisedBatch, draw_batch, training_batch
from tests.helpers.patience import wait_for
from tests.helpers.small_workspace import write_encoded

DIFFUSION = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.3)
SEED, SIZE, PARTS = 5, 12, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_encoded(tmp_path, train=37)
    return tmp_path / paths.ENCODED


def loader_of(folder: Path, workers: int, rank: int = 0, ranks: int = 1) -> BatchLoader:
    rows = rank_rows(SIZE, rank, ranks, PARTS).reshape(PARTS, -1)
    return BatchLoader(
        MicroBatches(EncodedDataset(folder, "train"), DIFFUSION, SEED, SIZE, rows), "diffusers", workers, "cpu"
    )


def batches_of(loader: BatchLoader, steps: range) -> list[NoisedBatch]:
    return [loader.micro_batch(step, part) for step in steps for part in range(PARTS)]


def equal(one: NoisedBatch, other: NoisedBatch) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(NoisedBatch))


def test_batches_are_the_same_with_any_number_of_workers_and_from_any_step(folder: Path) -> None:
    dataset = EncodedDataset(folder, "train")
    rows = np.split(np.arange(SIZE), PARTS)
    expected = [
        training_batch(dataset, DIFFUSION, "diffusers", SEED, step, SIZE, own) for step in range(8) for own in rows
    ]
    for workers in (0, 1, 2):
        loader = loader_of(folder, workers)
        for first in (0, 5, 2):  # a run that resumes begins anywhere
            found = batches_of(loader, range(first, 8))
            assert all(map(equal, found, expected[first * PARTS :])) and len(found) == (8 - first) * PARTS
        loader.close()


def test_ranks_with_workers_have_the_rows_of_one_process_without(folder: Path) -> None:
    whole = batches_of(loader_of(folder, 0), range(3))
    loaders = [loader_of(folder, 1, rank, 2) for rank in range(2)]
    shares = [batches_of(loader, range(3)) for loader in loaders]
    for batch, *own in zip(whole, *shares, strict=True):
        for name in ("latents_BCHW", "noise_BCHW", "sigma_B"):
            assert torch.equal(torch.cat([getattr(share, name) for share in own]), getattr(batch, name))
    for loader in loaders:
        loader.close()


def test_at_most_three_quarters_of_a_megabyte_is_handed_over_for_a_sample_of_the_papers_shapes(tmp_path: Path) -> None:
    lengths = np.linspace(0, 300, 17).astype(int)[1:]  # up to 300 tokens, 158 on average
    random = np.random.default_rng(0)
    samples = [
        Sample(
            f"{i:03d}",
            {
                "latent.npy": to_npy(random.standard_normal((32, 16, 16), np.float32).astype(np.float16)),
                "text.npy": to_npy(random.standard_normal((length, 2304), np.float32).astype(np.float16)),
                "json": describe(512, 512, f"{i}"),
            },
        )
        for i, length in enumerate(lengths - 8)
    ]
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, 8)})
    save_file({NULL_TEXT_NAME: torch.ones(1, 2304, dtype=torch.float16)}, tmp_path / NULL_TEXT)
    dataset = EncodedDataset(tmp_path, "train")
    drawn = draw_batch(dataset, DIFFUSION, 0, 0, 16, np.arange(16))
    assert drawn.stored.texts_SE.dtype == drawn.stored.latents_BCHW.dtype == torch.float16
    assert np.mean(drawn.stored.lengths) == pytest.approx(150, abs=2)
    sent = packed(drawn)
    assert sum(tensor.nbytes for tensor in tensors(drawn)) == sent.data.nbytes <= 0.75e6 * 16
    received = sent.unpacked()
    assert all(map(torch.equal, tensors(received), tensors(drawn)))
    assert (received.stored.lengths, received.dropped) == (drawn.stored.lengths, drawn.dropped)
    assert drawn.noised(dataset.null_text, "diffusers").text_BTE.dtype == torch.float32


def tensors(drawn: DrawnBatch) -> list[torch.Tensor]:
    return [drawn.noise_BCHW, drawn.sigma_B, drawn.stored.latents_BCHW, drawn.stored.texts_SE]


def test_workers_are_gone_when_the_loader_is_closed_and_it_can_be_asked_again(folder: Path) -> None:
    loader = loader_of(folder, 2)
    for _ in range(2):
        loader.micro_batch(0, 0)
        assert len(multiprocessing.active_children()) == 2
        loader.close()
        assert not multiprocessing.active_children()


def test_workers_outlive_the_signals_that_a_terminal_or_slurm_sends_to_all_processes(folder: Path) -> None:
    loader = loader_of(folder, 2)
    first = loader.micro_batch(0, 0)
    script = "import os, sys; [os.kill(int(pid), int(number)) for pid in sys.argv[1:] for number in (2, 15)]"
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    assert os.spawnlp(os.P_WAIT, "python3", "python3", "-c", script, *pids) == 0  # not from the workers' parent
    found = [first, *(loader.micro_batch(step, part) for step in range(4) for part in range(PARTS) if step or part)]
    assert all(map(equal, found, batches_of(loader_of(folder, 0), range(4)))), "they read on"
    for child in multiprocessing.active_children():
        child.terminate()  # from their parent
    wait_for(lambda: not multiprocessing.active_children(), "the workers to end")
    loader.close()


def test_a_worker_that_is_killed_is_named_in_one_line(folder: Path) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    loader = loader_of(folder, 2)
    loader.micro_batch(0, 0)
    assert signal.getsignal(signal.SIGCHLD) is handler
    killed = multiprocessing.active_children()[0]
    killed.kill()
    killed.join()
    with pytest.raises(WorkerDied, match=rf"step \d+: .*{killed.pid}.*exited.*run again") as caught:
        for number in range(1, 1000):
            loader.micro_batch(*divmod(number, PARTS))
    assert "\n" not in str(caught.value)
    loader.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named_in_one_line(folder: Path, workers: int) -> None:
    loader = loader_of(folder, workers)
    with open(folder / "train-00000.tar", "r+b") as file:
        file.truncate(512)
    with pytest.raises(UserError, match=r"^\S*train-00000\.tar does not fit its index: run the stage") as caught:
        batches_of(loader, range(4))
    assert "\n" not in str(caught.value)
    loader.close()


def test_batches_are_drawn_alike_where_workers_are_not_forked(folder: Path) -> None:
    rows = np.arange(SIZE).reshape(PARTS, -1)
    batches = MicroBatches(EncodedDataset(folder, "train"), DIFFUSION, SEED, SIZE, rows)
    for own, theirs in zip(tensors(batches[4]), tensors(pickle.loads(pickle.dumps(batches))[4]), strict=True):
        assert torch.equal(own, theirs)
