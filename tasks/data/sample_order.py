"""The order in which training sees its samples: a function of the seed and the step, so resuming needs no state.

Each epoch is a permutation of the samples. The epochs follow each other as one sequence, which is cut into batches
without gap or overlap. If shapes differ (`tasks.data.aspect_buckets`), a batch has samples of one shape. Each shape's
samples are cut into batches in the same way, and the batches of an epoch are permuted. Samples that are left over and
do not fill a batch of their shape wait for a later epoch, which fills the batch. So a shape with fewer samples than a
batch has its turn too. At any step, the numbers of times that the samples of one shape were seen differ by at most one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from tasks.computing.seeds import derive, numpy_generator


def batch_indices(seed: int, step: int, batch_size: int, dataset_size: int) -> np.ndarray:
    """The samples of batch `step` (from 0), int64 (batch_size,).

    A batch may hold the end of one epoch and the beginning of the next. Raises ValueError for an empty dataset.
    """
    if dataset_size < 1:
        raise ValueError("the dataset is empty: there is no order of its samples")
    permutation = _permutations(seed, dataset_size)
    places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(places, dataset_size)
    return np.concatenate([permutation(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])


def grouped_batch_indices(seed: int, step: int, batch_size: int, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The samples of batch `step`, int64 (batch_size,), all from one of `groups`.

    A group holds the indices of the samples of one shape. With a single group the order is that of `batch_indices`.
    Raises ValueError if a group is empty, or if there are none.
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

    A batch is cut into `parts` equal micro-batches, and each micro-batch among the processes. So all processes together
    see in their i-th micro-batch what a single process sees in its i-th. Raises ValueError if the batch does not divide
    into equal shares.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"there is no process {rank} of {ranks}")
    if batch_size % (ranks * parts):
        raise ValueError(f"a batch of {batch_size} does not divide into {parts} micro-batches on {ranks} processes")
    return np.arange(batch_size).reshape(parts, ranks, -1)[:, rank].reshape(-1)


@lru_cache(maxsize=256)
def _permutations(seed: int, dataset_size: int) -> Callable[[int], np.ndarray]:
    """A function that gives the permutation of an epoch.

    It keeps the last two permutations, which consecutive batches share. They are read-only, because they are shared.
    """

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        permuted = numpy_generator(seed, "order", epoch).permutation(dataset_size)
        permuted.setflags(write=False)
        return permuted

    return permutation


def _batches_before(epoch: int, batch_size: int, sizes: tuple[int, ...]) -> int:
    """How many batches, of all groups, the samples of the epochs before `epoch` fill."""
    return sum(epoch * size // batch_size for size in sizes)


def _epoch_of(step: int, batch_size: int, sizes: tuple[int, ...]) -> int:
    """The epoch of batch `step`: the last epoch that has at most `step` batches before it.

    It is found by bracketing it and halving the bracket, so no earlier epoch is counted through.
    """
    low = step * batch_size // sum(sizes)
    high = (step + len(sizes)) * batch_size // sum(sizes) + 1  # each group's last batch may not be filled yet
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _batches_before(middle, batch_size, sizes) <= step else (low, middle)
    return low


@lru_cache(maxsize=2)
def _turns(seed: int, epoch: int, batch_size: int, sizes: tuple[int, ...]) -> np.ndarray:
    """The group of each batch of an epoch, in the order in which the batches come."""
    counts = [(epoch + 1) * size // batch_size - epoch * size // batch_size for size in sizes]
    turns = np.repeat(np.arange(len(sizes)), counts)
    return numpy_generator(seed, "order", "batches", epoch).permutation(turns)
