"""Hands training its micro-batches, which worker processes read ahead (`compute.data_workers`).

PyTorch's DataLoader starts the workers, keeps the order and, for a GPU, copies into pinned memory. What it is asked for
is a pure function of the step, so the batches are the same for any number of workers, and can begin at any step.

Workers are forks, as PyTorch starts them on Linux by default: they begin at once, and share the memory of what is
imported. A fork has only the thread that made it, so a worker does nothing but NumPy, `pread` and small tensors on one
thread, and never touches the GPU. A worker that begins afresh would import this program again, which takes seconds.
"""

import ctypes
import itertools
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.numerics import Numerics
from tasks.data.encoded_samples import EncodedDataset, StoredBatch
from tasks.data.sample_order import sharded_batch_indices
from tasks.params.network_params import Diffusion
from tasks.system.errors import UserError, WorkerDied
from tasks.training.training_batch import DrawnBatch, NoisedBatch, draw_batch

AHEAD = 2
"""Micro-batches that a worker is ahead of training: one can be on its way to the device while the next is read."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1  # of Linux's <linux/prctl.h>


@dataclass(frozen=True)
class MicroBatches(Dataset[DrawnBatch | UserError]):
    """The micro-batches of one process by their number, which counts through all steps.

    `rows` (parts, rows) are the process's own in each micro-batch of a step (`tasks.data.sample_order.rank_rows`).
    """

    samples: EncodedDataset
    diffusion: Diffusion
    seed: int
    batch_size: int
    rows: np.ndarray

    def __getitem__(self, number: int) -> DrawnBatch | UserError:
        """A micro-batch. An error that a user is meant to read is handed over, as it would come with a traceback."""
        step, part = divmod(number, len(self.rows))
        try:
            return draw_batch(self.samples, self.diffusion, self.seed, step, self.batch_size, self.rows[part])
        except UserError as error:
            return error

    def samples_of(self, step: int) -> np.ndarray:
        """The indices of all samples of a step, int64 (batch_size,). None of them is read."""
        return sharded_batch_indices(self.seed, step, self.batch_size, self.samples.sharded_groups)

    def own_samples(self, step: int) -> list[np.ndarray]:
        """The indices of the samples in each micro-batch of this process, int64 (rows,)."""
        return [*self.samples_of(step)[self.rows]]


class NumbersFrom(Sampler[int]):
    """The numbers of all micro-batches from `first` on, without an end."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)


class BatchLoader:
    """The micro-batches of one process on its device. `close` ends the workers."""

    def __init__(self, batches: MicroBatches, numerics: Numerics, workers: int, device: str) -> None:
        """Nothing is read and no worker is started before the first micro-batch is asked for."""
        self._batches, self._numerics, self._workers, self._device = batches, numerics, workers, device
        self._null_TE = batches.samples.null_text.to(device)
        self._iterator: Iterator[DrawnBatch | PackedBatch | UserError] | None = None
        self._next = 0

    def micro_batch(self, step: int, part: int) -> NoisedBatch:
        """Micro-batch `part` of a step on the device. Raises the errors of `fetch`, and UserError as `noised` does."""
        return self.fetch(step, part).noised(self._null_TE, self._numerics, self._device)

    def fetch(self, step: int, part: int) -> DrawnBatch:
        """Micro-batch `part` of a step as it was read. Asked for in another order than theirs, the workers begin anew.

        Raises UserError for what cannot be read, and WorkerDied if a worker is gone.
        """
        number = step * len(self._batches.rows) + part
        if self._iterator is None or number != self._next:
            self._begin(number)
        assert self._iterator is not None
        died = ""
        try:
            drawn = next(self._iterator)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            died = str(error)
        if died:  # raised here, as the error above would keep the other workers alive
            self.close()
            raise WorkerDied(
                f"step {step}: {died}; if the system killed it for want of memory, lower compute.data_workers; "
                "run again to go on from the last checkpoint"
            )
        self._next = number + 1
        if isinstance(drawn, UserError):
            raise drawn
        return drawn.unpacked() if isinstance(drawn, PackedBatch) else drawn

    def close(self) -> None:
        """End the workers, which finish what they are reading. The loader may be asked again, and starts others."""
        self._iterator = None  # DataLoader ends them with the last reference to it

    def _begin(self, number: int) -> None:
        self.close()
        loader = DataLoader(
            self._batches,
            sampler=NumbersFrom(number),
            batch_size=None,
            collate_fn=packed if self._workers else _unchanged,
            num_workers=self._workers,
            prefetch_factor=AHEAD if self._workers else None,
            pin_memory=self._device == "cuda",
            worker_init_fn=_settle_worker,
            multiprocessing_context="fork" if self._workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # it draws a seed for workers, which else came from the global generator
        )
        with _signals_held(), _child_handler_kept():
            self._iterator = iter(loader)


class PackedBatch(NamedTuple):
    """A `DrawnBatch` as a worker sends it: its tensors one behind the other in one block of bytes, and its lists.

    Each tensor that travels between processes costs a file descriptor and a connection, about a millisecond.
    """

    data: Tensor
    kinds: list[tuple[torch.dtype, list[int]]]
    lengths: list[int]
    dropped: list[bool]

    def unpacked(self) -> DrawnBatch:
        """The batch, as views of the block."""
        sizes = [kind.itemsize * math.prod(shape) for kind, shape in self.kinds]
        parts = [
            part.view(kind).view(shape) for part, (kind, shape) in zip(self.data.split(sizes), self.kinds, strict=True)
        ]
        noise_BCHW, sigma_B, latents_BCHW, texts_SE = parts
        return DrawnBatch(StoredBatch(latents_BCHW, texts_SE, self.lengths), noise_BCHW, sigma_B, self.dropped)


def packed(drawn: DrawnBatch | UserError) -> PackedBatch | UserError:
    """The batch as a worker sends it. Wide numbers come first, so that every tensor begins at a multiple of its own."""
    if isinstance(drawn, UserError):
        return drawn
    stored = drawn.stored
    tensors = (drawn.noise_BCHW, drawn.sigma_B, stored.latents_BCHW, stored.texts_SE)
    data = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
    kinds = [(tensor.dtype, list(tensor.shape)) for tensor in tensors]
    return PackedBatch(data, kinds, stored.lengths, drawn.dropped)


def _unchanged(drawn: DrawnBatch | UserError) -> DrawnBatch | UserError:
    return drawn


def _settle_worker(_number: int) -> None:
    """Let a worker end by its parent's wish or death alone; runs in the worker first.

    Ctrl-C goes to all processes of a terminal, and Slurm sends TERM to all of a job, while training still needs its
    batches to finish the step. PyTorch's worker loop has set one CPU thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":  # there PyTorch ends a worker a few seconds after its parent
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def end_by_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end_by_parent, daemon=True, name="parent's TERM").start()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back INT and TERM in the `with` block. What is forked there has them held until it lets them go."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Put the handler of SIGCHLD back, which DataLoader replaces by one that raises an error wherever the program is.

    A worker's death is then found when its batch is waited for, at most five seconds later, and named there.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)
