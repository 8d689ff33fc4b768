"""The order in which training sees its samples: a function of the seed and the step, so resuming needs no state."""

from functools import lru_cache

import numpy as np

from tasks.seeds import numpy_generator


def batch_indices(seed: int, step: int, batch_size: int, dataset_size: int) -> np.ndarray:
    """The samples of batch `step` (from 0), int64 (batch_size,).

    Epochs follow each other as one endless sequence, each a permutation of its own; batches cut it without gap or
    overlap, so a batch may end one epoch and begin the next. Raises ValueError for an empty dataset.
    """
    if dataset_size < 1:
        raise ValueError("the dataset is empty: there is no order of its samples")
    places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(places, dataset_size)
    parts = [_permutation(seed, int(epoch), dataset_size)[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, dataset_size: int) -> np.ndarray:
    """The epoch's permutation. The last two are kept, as consecutive batches share them, and so are read-only."""
    permutation = numpy_generator(seed, "order", epoch).permutation(dataset_size)
    permutation.setflags(write=False)
    return permutation
