"""A row of a training batch has numbers of its own, which no other row has and no number of processes changes."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.computing import seeds
from tasks.computing.seeds import row_generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.sample_order import rank_rows
from tasks.params.network_params import Diffusion
from tasks.system import paths
from tasks.training import training_batch as batches
from tasks.training.training_batch import NoisedBatch, training_batch
from tests.helpers.small_workspace import write_encoded

DIFFUSION = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.3)
SIZE = 24


class CountedGenerator:
    """A generator of a row that counts how many numbers are drawn of it and of all others."""

    drawn = 0

    def __init__(self, seed: int, step: int, row: int) -> None:
        self._generator = seeds.row_generator(seed, step, row)

    def random(self) -> float:
        CountedGenerator.drawn += 1
        return self._generator.random()

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        numbers = self._generator.standard_normal(shape, dtype)
        CountedGenerator.drawn += np.size(numbers)
        return numbers


@pytest.fixture
def dataset(tmp_path: Path) -> EncodedDataset:
    write_encoded(tmp_path, train=37)
    return EncodedDataset(tmp_path / paths.ENCODED, "train")


def test_a_process_draws_numbers_for_its_own_rows_alone(
    dataset: EncodedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "row_generator", CountedGenerator)
    drawn = {}
    for ranks in (1, 2, 4, 8):
        CountedGenerator.drawn = 0
        training_batch(dataset, DIFFUSION, "diffusers", 5, 3, SIZE, rank_rows(SIZE, 0, ranks))
        drawn[ranks] = CountedGenerator.drawn
    assert drawn[1] >= SIZE * 3 * 4 * 4
    assert all(drawn[ranks] * ranks == drawn[1] for ranks in drawn)


@pytest.mark.parametrize("numerics", ["diffusers", "nvlabs"])
def test_a_row_is_the_same_on_any_number_of_processes(dataset: EncodedDataset, numerics: str) -> None:
    dataset.null_text = torch.randn(9, 6)
    whole = training_batch(dataset, DIFFUSION, numerics, 5, 3, SIZE)
    for ranks in (2, 3, 8):
        for rank in range(ranks):
            rows = rank_rows(SIZE, rank, ranks)
            own = training_batch(dataset, DIFFUSION, numerics, 5, 3, SIZE, rows)
            length = own.mask_BT.shape[1]
            for field in fields(NoisedBatch):
                expected = getattr(whole, field.name)[rows]
                if field.name in ("text_BTE", "mask_BT"):
                    assert not whole.mask_BT[rows, length:].any()
                    expected = expected[:, :length]
                assert torch.equal(getattr(own, field.name), expected)


def test_no_two_rows_have_a_number_in_common() -> None:
    places = [(seed, step, row) for seed in (1, 2) for step in (0, 1, 2**40) for row in (0, 1, 2**20)]
    numbers = [row_generator(*place).integers(0, 2**63, 4096) for place in places]
    assert len(np.unique(np.concatenate(numbers))) == 4096 * len(places)


def test_numbers_of_rows_are_independent_and_standard_normal() -> None:
    rows = np.stack([row_generator(7, 11, row).standard_normal(256, np.float32) for row in range(256)])
    assert abs(rows.mean()) < 5 / 256 and abs(rows.var() - 1) < 5 * 2**0.5 / 256
    correlations = np.corrcoef(rows)[np.triu_indices(256, 1)]
    assert np.abs(correlations).max() < 6 / 16 and abs(correlations.std() * 16 - 1) < 0.05
