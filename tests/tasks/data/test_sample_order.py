"""Training sees samples in a stated order: whole epochs, full batches of one shape, shared among processes."""

import hashlib
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from tasks.data import sample_order
from tasks.data.sample_order import (
    WINDOW_SHARDS,
    ShardedSamples,
    batch_indices,
    grouped_batch_indices,
    rank_rows,
    sharded_batch_indices,
)

GROUPS = [np.array([3, 8, 11]), np.array([0, 1, 2, 4, 5, 6, 7, 9, 10, 12, 13]), np.array([14]), np.arange(15, 41)]
BATCH = 4


def stated_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """An epoch's order, stated anew: NumPy's default generator, seeded by the upper 63 of sha256's first 64 bits."""
    digest = hashlib.sha256(f"{seed}/order/{epoch}".encode()).hexdigest()
    return np.random.default_rng(int(digest[:16], 16) // 2).permutation(size)


def grouped(step: int, seed: int = 7, batch_size: int = BATCH) -> np.ndarray:
    return grouped_batch_indices(seed, step, batch_size, GROUPS)


def group_of(batch: np.ndarray) -> int:
    """The number of the group that all of a batch is of; fails if it is of several."""
    (number,) = [i for i, group in enumerate(GROUPS) if np.isin(batch, group).any()]
    return number


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
    for groups in ([], [np.arange(3), np.arange(0)]):
        with pytest.raises(ValueError, match="empty"):
            grouped_batch_indices(0, 0, 4, groups)


@pytest.mark.parametrize(("batch_size", "size"), [(8, 37), (64, 50), (5, 5)])
def test_the_order_of_samples_of_one_shape_is_the_stated_one(batch_size: int, size: int) -> None:
    stream = np.concatenate([stated_permutation(3, epoch, size) for epoch in range(20)])
    for step in range(20 * size // batch_size):
        expected = stream[step * batch_size : (step + 1) * batch_size]
        for batch in (
            batch_indices(3, step, batch_size, size),
            grouped_batch_indices(3, step, batch_size, [np.arange(size)]),
        ):
            assert batch.dtype == np.int64 and (batch == expected).all()


def test_each_batch_is_of_one_group_and_full() -> None:
    for step in range(200):
        batch = grouped(step)
        assert len(batch) == BATCH and group_of(batch) in range(len(GROUPS))


def test_batches_of_a_group_are_its_epochs_laid_end_to_end() -> None:
    total = sum(map(len, GROUPS))
    steps = 12 * total // BATCH  # twelve epochs, of whole batches each
    batches = [grouped(step) for step in range(steps)]
    for number, group in enumerate(GROUPS):
        own = [batch for batch in batches if group_of(batch) == number]
        seen = np.bincount(np.concatenate(own), minlength=total)[group]
        assert seen.max() - seen.min() <= 1, "a sample waits while another of its shape comes twice"
        assert len(own) == 12 * len(group) // BATCH


def test_what_is_left_over_of_an_epoch_is_less_than_a_batch_of_each_group_and_comes_later() -> None:
    total = sum(map(len, GROUPS))
    first = [sum(epoch * len(group) // BATCH for group in GROUPS) for epoch in range(6)]
    waiting = []
    for begin, end in pairwise(first):
        batches = [grouped(step) for step in range(begin, end)]
        seen = np.bincount(np.concatenate(batches), minlength=total)
        waiting.append(tuple(np.flatnonzero(seen == 0)))
        assert all((seen[group] == 0).sum() <= 2 * (BATCH - 1) for group in GROUPS)
    everything = np.concatenate([grouped(step) for step in range(first[4])])
    assert set(everything) == set(range(total)), "within four epochs even the group of one sample has filled its batch"
    assert len(set(waiting)) == len(waiting)


def test_batches_of_an_epoch_are_permuted_among_the_groups() -> None:
    epochs = [tuple(group_of(grouped(step, seed)) for step in range(30)) for seed in range(5)]
    assert len(set(epochs)) == 5
    assert all(len(set(epoch)) > 1 for epoch in epochs)


def test_grouped_batch_depends_on_its_arguments_alone() -> None:
    forward = [grouped(step) for step in range(60)]
    for step in np.random.default_rng(0).permutation(60):
        grouped(int(step), seed=8)
        assert (grouped(int(step)) == forward[step]).all()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 30, 100])
def test_every_step_has_its_batch_whatever_the_batch_size(batch_size: int) -> None:
    steps = 400 // batch_size + 10
    drawn = [group_of(grouped(step, batch_size=batch_size)) for step in range(steps)]
    shares = np.bincount(drawn, minlength=len(GROUPS)) / steps
    expected = np.array([len(group) for group in GROUPS]) / sum(map(len, GROUPS))
    assert np.abs(shares * steps - expected * steps).max() <= 2 + max(map(len, GROUPS)) / batch_size


def test_processes_and_micro_batches_share_a_batch_without_overlap() -> None:
    for ranks, parts in [(1, 1), (2, 1), (1, 3), (2, 3), (4, 3), (12, 1)]:
        rows = [rank_rows(12, rank, ranks, parts) for rank in range(ranks)]
        assert sorted(np.concatenate(rows)) == list(range(12))
        for part, whole in enumerate(np.split(np.arange(12), parts)):
            assert sorted(np.concatenate([np.split(own, parts)[part] for own in rows])) == list(whole)
    assert (rank_rows(12, 0, 1, 4) == np.arange(12)).all()


@pytest.mark.parametrize(
    ("rank", "ranks", "parts", "reason"), [(0, 5, 1, "divide"), (0, 4, 2, "divide"), (2, 2, 1, "no")]
)
def test_a_batch_that_cannot_be_shared_is_refused(rank: int, ranks: int, parts: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rank_rows(12, rank, ranks, parts)


SHARDS = [np.arange(begin, end) for begin, end in pairwise([0, 5, 6, 14, 21, 30, 33, 40, 41, 50])]


def sharded(shards: list[np.ndarray], kinds: np.ndarray) -> list[ShardedSamples]:
    """The samples of each kind in these shards."""
    of_kind = [[shard[kinds[shard] == kind] for shard in shards] for kind in np.unique(kinds)]
    return [ShardedSamples([len(own) for own in owns], owns.__getitem__) for owns in of_kind]


def shard_of(samples: np.ndarray) -> np.ndarray:
    return np.array([next(i for i, shard in enumerate(SHARDS) if sample in shard) for sample in samples.tolist()])


def test_in_one_window_the_order_is_that_without_shards() -> None:
    kinds = np.random.default_rng(0).integers(0, 3, 50)
    for chosen in (np.zeros(50, np.int64), kinds):
        samples = sharded(SHARDS, chosen)
        groups = [np.flatnonzero(chosen == kind) for kind in np.unique(chosen)]
        for step in range(60):
            expected = grouped_batch_indices(3, step, 4, groups)
            assert np.array_equal(sharded_batch_indices(3, step, 4, samples), expected)


def test_an_epoch_has_every_sample_once_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_order, "WINDOW_SHARDS", 2)
    (samples,) = sharded(SHARDS, np.zeros(50, np.int64))
    stream = np.concatenate([sharded_batch_indices(3, step, 4, [samples]) for step in range(50)])
    orders = []
    for epoch in stream.reshape(4, 50):
        assert sorted(epoch) == list(range(50))
        read = shard_of(epoch)
        places = {shard: np.flatnonzero(read == shard) for shard in range(9)}
        for shard, own in places.items():
            among = [other for other, theirs in places.items() if own[0] <= theirs[-1] and theirs[0] <= own[-1]]
            assert len(among) <= 2, f"shard {shard} is read among {among}"
        orders.append(tuple(dict.fromkeys(read.tolist())))
    assert len(set(orders)) == 4, "each epoch shuffles the shards"


def test_batches_of_several_windows_depend_on_their_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_order, "WINDOW_SHARDS", 2)
    kinds = np.random.default_rng(1).integers(0, 2, 50)
    forward = [sharded_batch_indices(1, step, 8, sharded(SHARDS, kinds)) for step in range(40)]
    again = sharded(SHARDS, kinds)
    for step in np.random.default_rng(0).permutation(40):
        sharded_batch_indices(2, int(step), 8, again)
        assert np.array_equal(sharded_batch_indices(1, int(step), 8, again), forward[step])


def test_each_shape_is_served_as_often_in_many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_order, "WINDOW_SHARDS", 2)
    kinds = np.random.default_rng(2).choice(3, 50, p=[0.1, 0.3, 0.6])
    samples, seen = sharded(SHARDS, kinds), np.zeros(50, np.int64)
    for step in range(12 * 50 // 4):
        batch = sharded_batch_indices(3, step, 4, samples)
        assert len(set(kinds[batch])) == 1
        np.add.at(seen, batch, 1)  # a batch may hold a sample twice, where an epoch ends
        for kind in range(3):
            assert np.ptp(seen[kinds == kind]) <= 1


def test_fifty_million_samples_take_the_memory_of_two_windows_and_few_open_shards() -> None:
    shards, size, asked = 5000, 10_000, []

    def of_shard(number: int) -> np.ndarray:
        asked.append(number)
        return np.arange(number * size, (number + 1) * size)

    samples = ShardedSamples([size] * shards, of_shard)
    tracemalloc.start()
    for step in range(40_000, 40_160):
        assert len(sharded_batch_indices(3, step, 1024, [samples])) == 1024
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * WINDOW_SHARDS * size, "an epoch's permutation would take 400 MB"
    assert len(set(asked)) == len(asked) == 2 * WINDOW_SHARDS, "160 batches are of two windows"


def test_shapes_walk_through_the_shards_together() -> None:
    shards, size = 400, 500
    asked: set[int] = set()

    def of_shard(number: int, kind: int) -> np.ndarray:
        asked.add(number)
        return np.arange(kind, size, 5) + number * size

    samples = [ShardedSamples([100] * shards, lambda number, kind=kind: of_shard(number, kind)) for kind in range(5)]
    opened = []
    for start in range(0, 800, 40):  # 40 batches of 64 are a third of a window
        asked.clear()
        for step in range(start, start + 40):
            sharded_batch_indices(3, step, 64, samples)
        opened.append(len(asked))
    assert max(opened) <= 4 * WINDOW_SHARDS, "a window and its neighbours"
