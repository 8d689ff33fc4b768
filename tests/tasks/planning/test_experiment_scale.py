"""A plan counts the user's own pictures where that is quick, and says where it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.planning.experiment_scale import OWN_SAMPLES, measure_scale
from tasks.system.errors import UserError
from tests.helpers.published_folders import write_sana_shards
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def params_of(source: str, **shard: Any) -> Params:
    changes = {f"shard.{key}": value for key, value in {"source": source, "path": "mine", **shard}.items()}
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), PUBLISHED_DETECTOR | changes, "test")
    return build_params(values, "test")


def write_folder(count: int) -> None:
    """So many pictures with captions, some in a folder below, and files that are no pictures."""
    Path("mine/more/.hidden").mkdir(parents=True)
    for number in range(count):
        name = f"mine/{'more/' if number % 3 else ''}{number}"
        Path(f"{name}.{('jpg', 'PNG', 'webp')[number % 3]}").touch()
        Path(f"{name}.txt").write_text("a picture")
    for name in ("mine/notes.md", "mine/.cat.jpg", "mine/more/.hidden/dog.png"):
        Path(name).touch()


def test_the_pictures_of_a_folder_are_counted() -> None:
    write_folder(1_200)
    scale = measure_scale(params_of("folder"))
    assert (scale.train_samples, scale.heldout_samples) == (1_080, 120)
    assert "Pictures: 1,200 (counted in mine)." in scale.assumptions[0]


def test_a_number_that_is_given_counts_more_than_the_folder() -> None:
    write_folder(12)
    scale = measure_scale(params_of("folder"), samples=5_000)
    assert scale.train_samples + scale.heldout_samples == 5_000
    assert "Pictures: 5,000 (--samples)." in scale.assumptions[0]


def test_a_folder_with_too_few_pictures_is_named() -> None:
    write_folder(1)
    with pytest.raises(UserError, match=r"^mine holds 1 pictures: at least 2 are needed, one to hold out$"):
        measure_scale(params_of("folder"))


def test_shards_in_sanas_layout_are_counted_by_their_list() -> None:
    torch.manual_seed(0)
    write_sana_shards(Path("mine"), 40)
    scale = measure_scale(params_of("sana"))
    assert scale.train_samples + scale.heldout_samples == 40
    assert "Pictures: 40 (listed in mine/wids-meta.json)." in scale.assumptions[0]


@pytest.mark.parametrize("source", ["folder", "webdataset", "sana"])
def test_pictures_that_are_not_there_are_assumed_to_be_the_papers_and_that_is_said(source: str) -> None:
    scale = measure_scale(params_of(source))
    assert scale.train_samples + scale.heldout_samples == OWN_SAMPLES
    assert "Pictures: 50,000,000 (SANA-1.5, section 3.1: mine is missing)." in scale.assumptions[0]


def test_shards_without_a_list_are_not_counted_and_that_is_said() -> None:
    Path("mine").mkdir()
    scale = measure_scale(params_of("webdataset"))
    assert scale.train_samples + scale.heldout_samples == OWN_SAMPLES
    assert "section 3.1: mine is not counted; say how many with --samples)." in scale.assumptions[0]
