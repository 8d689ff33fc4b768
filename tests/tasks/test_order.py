"""Claims about the order of training samples."""

import numpy as np
import pytest

from tasks.data.order import batch_indices


@pytest.mark.parametrize(("batch_size", "dataset_size"), [(1, 1), (3, 10), (10, 3), (4, 12), (7, 7), (64, 50)])
def test_batches_are_the_epochs_laid_end_to_end(batch_size: int, dataset_size: int) -> None:
    steps = 3 * dataset_size
    stream = np.concatenate([batch_indices(5, step, batch_size, dataset_size) for step in range(steps)])
    for start in range(0, len(stream) - dataset_size + 1, dataset_size):
        assert sorted(stream[start : start + dataset_size]) == list(range(dataset_size))


def test_batch_depends_on_its_arguments_alone() -> None:
    forward = [batch_indices(1, step, 8, 30) for step in range(40)]
    for step in np.random.default_rng(0).permutation(40):
        batch_indices(2, int(step), 8, 30)
        assert (batch_indices(1, int(step), 8, 30) == forward[step]).all()


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [tuple(batch_indices(seed, epoch, 20, 20)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_no_order_of_an_empty_dataset() -> None:
    with pytest.raises(ValueError, match="empty"):
        batch_indices(0, 0, 4, 0)
