"""The order in which training sees its samples: a function of the seed and the step, so resuming needs no state.

Samples of one shape are permuted in each epoch, and batches cut the epochs without gap or overlap. Where shapes differ
(`tasks.data.aspect_buckets`), a batch has one shape: each shape's samples are cut into batches in just this way, and
the batches of an epoch are permuted. What does not fill a batch of its shape waits: its batch is filled,
and comes, in a later epoch. So a shape of fewer samples than a batch has its turn too, and at any step the samples of a
shape have been seen equally often but for one time.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from tasks.computing.seeds import derive, numpy_generator


def batch_indices(seed: int, step: int, batch_size: int, dataset_size: int) -> np.ndarray:
    """The samples of batch `step` (from 0), int64 (batch_size,).

    Epochs follow each other as one endless sequence, each a permutation of its own; batches cut it without gap or
    overlap, so a batch may end one epoch and begin the next. Raises ValueError for an empty dataset.
    """
    if dataset_size < 1:
        raise ValueError("the dataset is empty: there is no order of its samples")
    permutation = _permutations(seed, dataset_size)
    places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(places, dataset_size)
    return np.concatenate([permutation(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])


def grouped_batch_indices(seed: int, step: int, batch_size: int, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The samples of batch `step`, all of one of `groups`, int64 (batch_size,); of a single group, as `batch_indices`.

    A group holds the indices of the samples of one shape. Raises ValueError if one is empty, or there are none.
    """
    if len(groups) == 1:
        return groups[0][batch_indices(seed, step, batch_size, len(groups[0]))]
    sizes = tuple(len(group) for group in groups)
    if not sizes or min(sizes) < 1:
        raise ValueError("a group of samples is empty: there is no order of its samples")
    epoch = _epoch_of(step, batch_size, sizes)
    turns = _turns(seed, epoch, batch_size, sizes)
    place = step - _batches_before(epoch, batch_size, sizes)
    group = int(turns[place])
    number = epoch * sizes[group] // batch_size + int((turns[:place] == group).sum())
    return groups[group][batch_indices(derive(seed, "order", "group", group), number, batch_size, sizes[group])]


def rank_rows(batch_size: int, rank: int, ranks: int, parts: int = 1) -> np.ndarray:
    """The rows of a batch that process `rank` of `ranks` works on, int64 (batch_size / ranks,).

    Cut into `parts` equal micro-batches, its i-th is a share of the i-th micro-batch of a single process, so that all
    processes together see in each what one would. Raises ValueError if the batch does not divide among them.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"there is no process {rank} of {ranks}")
    if batch_size % (ranks * parts):
        raise ValueError(f"a batch of {batch_size} does not divide into {parts} micro-batches on {ranks} processes")
    return np.arange(batch_size).reshape(parts, ranks, -1)[:, rank].reshape(-1)


@lru_cache(maxsize=256)
def _permutations(seed: int, dataset_size: int) -> Callable[[int], np.ndarray]:
    """The permutation of each epoch. The last two are kept, as consecutive batches share them, and so are read-only."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        permuted = numpy_generator(seed, "order", epoch).permutation(dataset_size)
        permuted.setflags(write=False)
        return permuted

    return permutation


def _batches_before(epoch: int, batch_size: int, sizes: tuple[int, ...]) -> int:
    """The batches of all groups that are filled by the end of the epochs before `epoch`."""
    return sum(epoch * size // batch_size for size in sizes)


def _epoch_of(step: int, batch_size: int, sizes: tuple[int, ...]) -> int:
    """The epoch that batch `step` is of: the last with no more batches before it, bracketed and halved."""
    low = step * batch_size // sum(sizes)
    high = (step + len(sizes)) * batch_size // sum(sizes) + 1  # each group's last batch may not be filled yet
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _batches_before(middle, batch_size, sizes) <= step else (low, middle)
    return low


@lru_cache(maxsize=2)
def _turns(seed: int, epoch: int, batch_size: int, sizes: tuple[int, ...]) -> np.ndarray:
    """The group of each batch of an epoch, permuted."""
    counts = [(epoch + 1) * size // batch_size - epoch * size // batch_size for size in sizes]
    turns = np.repeat(np.arange(len(sizes)), counts)
    return numpy_generator(seed, "order", "batches", epoch).permutation(turns)
