"""Stages grow, importance and prune report every choice they compare, and write the model that params choose."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.block_importance import block_importance
from model.checkpoint import load_network, save_network
from model.growth import STRATEGIES
from tasks import importance, prune
from tasks.computing.random_block_choices import random_choices
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml, section_values
from tasks.runtime.context import Metrics
from tasks.runtime.stage_command import stage_command
from tasks.stages import Stage, stage_of
from tasks.system import paths
from tasks.training.heldout_loss import heldout_loss
from tests.helpers import drawing_workspace
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params

GROWN_DEPTH, HELDOUT = 5, 120
CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "pretrain.depth": 2,
    "grow.depth": GROWN_DEPTH,
    "importance.prompts": 100,
    "importance.batch_size": 40,
    "importance.times": [0.2, 0.5, 0.8],
    "prune.depths": [4, 3, 2],
    "prune.random_choices": 3,
}


def params(**changes: Any) -> Params:
    """The workspace's parameters with `section__key=value` changed."""
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    return build_params(apply_overrides(read_yaml(PARAMS_FILE), overrides, "test"), "test")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with params, encoded data, and the checkpoints `small` and `grown`."""
    write_params(tmp_path, CHANGES)
    write_encoded(tmp_path, heldout=HELDOUT)
    monkeypatch.chdir(tmp_path)
    for folder, depth, seed in ((paths.SMALL, 2, 0), (paths.GROWN, GROWN_DEPTH, 1)):
        folder.mkdir()
        save_network(small_network(depth, seed), folder)
    yield tmp_path


def run(stage: Stage, chosen: Params) -> tuple[Metrics, Path]:
    """The stage's metrics and output, as the command leaves it."""
    return drawing_workspace.run(stage, chosen)


def loss_of(network: torch.nn.Module) -> float:
    return heldout_loss(
        network, EncodedDataset(paths.ENCODED, "heldout"), params().diffusion, 0, "cpu", "float32"
    ).value


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_values(stage: Stage, chosen: Params) -> dict[str, Any]:
    """The parameters that the stage's result depends on."""
    return section_values(chosen, stage.sections)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_growing_reports_every_strategy_without_and_with_a_dropped_block(workspace: Path) -> None:
    metrics, out = run(stage_of("grow", params()), params())
    report = read(out / "growth.json")
    starts = {(start["strategy"], start["drop"]): start for start in report["starts"]}
    assert set(starts) == {(strategy, drop) for strategy in STRATEGIES for drop in (0, 1)}
    small_loss = loss_of(load_network(paths.SMALL))
    identity = starts["partial_preservation", 0]
    assert (identity["function_distance"], identity["heldout_loss"]) == (0.0, small_loss)
    assert metrics["heldout_loss_small"] == small_loss
    assert all(start["function_distance"] > 0.01 for key, start in starts.items() if start is not identity)
    cut = load_network(paths.SMALL)
    del cut.blocks[1:]
    assert starts["partial_preservation", 1]["heldout_loss"] == loss_of(cut)


@pytest.mark.parametrize(
    ("strategy", "share", "drop"), [("partial_preservation", 0.1, 0), ("cyclic", 0.5, 1), ("block_replication", 0.0, 0)]
)
def test_the_grown_checkpoint_is_the_chosen_start(workspace: Path, strategy: str, share: float, drop: int) -> None:
    chosen = params(grow__strategy=strategy, grow__drop_share=share)
    metrics, out = run(stage_of("grow", chosen), chosen)
    network = load_network(out)
    assert (
        read(out / "growth.json")["chosen"] | {"strategy": strategy, "drop": drop}
        == read(out / "growth.json")["chosen"]
    )
    assert metrics["heldout_loss"] == read(out / "growth.json")["chosen"]["heldout_loss"] == loss_of(network)
    assert (metrics["drop"], metrics["depth"], len(network.blocks)) == (drop, GROWN_DEPTH, GROWN_DEPTH)


def test_growing_by_no_block_passes_the_model_on_byte_for_byte(workspace: Path) -> None:
    save_network(load_network(paths.SMALL), paths.SMALL)  # as a stage has written it
    chosen = params(pretrain__depth=2, grow__depth=2, grow__drop_share=0.0, prune__depths=[1])
    metrics, out = run(stage_of("grow", chosen), chosen)
    assert (out / "model.safetensors").read_bytes() == (paths.SMALL / "model.safetensors").read_bytes()
    assert metrics["function_distance"] == 0 and len(read(out / "growth.json")["starts"]) == 1


def test_importance_is_the_mean_over_single_samples(workspace: Path) -> None:
    _, out = run(stage_of("importance", params()), params())
    heldout, network = EncodedDataset(paths.ENCODED, "heldout"), load_network(paths.GROWN)
    random = generator(0, "importance", "noise")
    noise = torch.cat([torch.randn(count, 3, 4, 4, generator=random) for count in (40, 40, 20)])
    each = []
    distinct = [0, *range(2, HELDOUT)]  # samples 0 and 1 share their caption
    for position, index in enumerate(distinct[number * len(distinct) // 100] for number in range(100)):
        sample = heldout.batch([index])
        text = network.encode_text(sample.text_BTE, sample.mask_BT)
        each.append(
            block_importance(network, sample.latents_BCHW, noise[position : position + 1], text, [0.2, 0.5, 0.8])
        )
    np.testing.assert_allclose(read(out / "importance.json")["scores"], torch.stack(each).mean(0), rtol=1e-4)


def test_importance_is_saved_with_its_spread_and_the_order_of_removal(workspace: Path) -> None:
    metrics, out = run(stage_of("importance", params()), params())
    report = read(out / "importance.json")
    scores = np.array(report["scores"])
    assert scores.shape == (3, GROWN_DEPTH)
    np.testing.assert_allclose(report["mean"], scores.mean(0), rtol=1e-12)
    np.testing.assert_allclose(report["std"], scores.std(0), rtol=1e-9)
    assert report["removal_order"] == np.argsort(scores.mean(0), kind="stable").tolist()
    assert report["prompts"] == metrics["prompts"] == 100
    with open(out / "importance.csv", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["importance"] for row in rows] == report["mean"]
    assert [(row["block"], row["std"]) for row in rows] == list(enumerate(report["std"]))


def test_with_fewer_held_out_captions_than_prompts_importance_takes_them_all_and_says_so(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = params(importance__prompts=HELDOUT + 1)
    metrics, out = run(stage_of("importance", chosen), chosen)
    assert metrics["prompts"] == read(out / "importance.json")["prompts"] == 119
    said = [line for line in capsys.readouterr().out.splitlines() if "importance.prompts" in line]
    assert said == [
        "importance: different captions held out: 119, fewer than importance.prompts 121; "
        "measured on one sample of each"
    ]


def test_with_enough_held_out_captions_importance_says_nothing_of_them(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(stage_of("importance", params()), params())
    assert "importance.prompts" not in capsys.readouterr().out


@pytest.mark.parametrize(("available", "prompts"), [(12, 12), (12, 5), (512, 128), (7, 1)])
def test_calibration_samples_are_distinct_and_spread_over_the_split(available: int, prompts: int) -> None:
    captions = [str(number) for number in range(available)]
    indices = importance.calibration_indices(captions, prompts)
    assert len(set(indices)) == len(indices) == prompts
    assert indices[0] == 0 and indices[-1] < available
    assert np.ptp(np.diff(indices, append=available)) <= 1


def test_calibration_takes_each_caption_once_where_it_comes_first() -> None:
    captions = ["a", "b", "a", "a", "c", "b", "d"]
    assert importance.calibration_indices(captions, 4).tolist() == [0, 1, 4, 6]
    assert importance.calibration_indices(captions, 5).tolist() == [0, 1, 4, 6]


def test_pruning_keeps_the_blocks_that_the_saved_importance_ranks_highest(workspace: Path) -> None:
    paths.IMPORTANCE.mkdir()
    (paths.IMPORTANCE / "importance.json").write_text('{"mean": [0.9, 0.01, 0.2, 0.3, 0.1]}', encoding="utf-8")
    metrics, out = run(stage_of("prune", params(), 3), params())
    report, grown, pruned = read(out / "pruning.json"), load_network(paths.GROWN), load_network(out)
    assert (report["kept"], report["removed"]) == ([0, 2, 3], [1, 4])
    for block, number in zip(pruned.blocks, [0, 2, 3], strict=True):
        pairs = zip(block.parameters(), grown.blocks[number].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert metrics["heldout_loss"] == report["heldout_loss"]["importance"] == loss_of(pruned)
    assert metrics["heldout_loss_before"] == loss_of(grown)
    assert metrics["depth"] == pruned.config.depth == 3


def test_pruning_reports_other_choices_of_as_many_blocks(workspace: Path) -> None:
    paths.IMPORTANCE.mkdir()
    (paths.IMPORTANCE / "importance.json").write_text('{"mean": [0.9, 0.01, 0.2, 0.3, 0.1]}', encoding="utf-8")
    metrics, out = run(stage_of("prune", params(), 3), params())
    report = read(out / "pruning.json")
    kept_by = {"first_removed": [2, 3, 4], "last_removed": [0, 1, 2]}
    kept_by |= {f"random {i}": kept for i, kept in enumerate(report["random_kept"])}
    losses = report["heldout_loss"] | {f"random {i}": loss for i, loss in enumerate(report["heldout_loss"]["random"])}
    assert len(report["random_kept"]) == 3
    for name, kept in kept_by.items():
        assert len(kept) == 3 and kept == sorted(set(kept))
        network = load_network(paths.GROWN)
        network.blocks = torch.nn.ModuleList(network.blocks[i] for i in kept)
        assert losses[name] == loss_of(network), name
    assert metrics["heldout_loss_random"] == pytest.approx(np.mean(losses["random"]))


def test_random_choices_differ_by_number_and_by_seed() -> None:
    choices = {tuple(choice) for seed in range(5) for choice in random_choices(20, 10, 5, seed)}
    assert len(choices) == 25


@pytest.mark.parametrize(
    "build", [partial(stage_of, "grow"), partial(stage_of, "importance"), lambda chosen: stage_of("prune", chosen, 2)]
)
def test_the_same_inputs_give_the_same_bytes(workspace: Path, build: Callable[[Params], Stage]) -> None:
    paths.IMPORTANCE.mkdir()
    (paths.IMPORTANCE / "importance.json").write_text('{"mean": [0.9, 0.01, 0.2, 0.3, 0.1]}', encoding="utf-8")
    chosen, stage = params(), build(params())
    torch.manual_seed(1)
    _, first = run(replace(stage, output=Path("first")), chosen)
    torch.manual_seed(2)
    _, second = run(replace(stage, output=Path("second")), chosen)
    assert all_bytes(first) == all_bytes(second) != {}


def test_cutting_other_depths_besides_leaves_a_pruned_model_up_to_date(workspace: Path) -> None:
    alone, beside = params(prune__depths=[3]), params(prune__depths=[4, 3, 2])
    values = [read_values(stage_of("prune", chosen, 3), chosen) for chosen in (alone, beside)]
    assert values[0] == values[1]
    more_choices = params(prune__random_choices=9)
    assert read_values(stage_of("prune", more_choices, 3), more_choices) != values[0]


def test_a_depth_that_params_do_not_name_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        stage_command("prune", prune.__doc__, ["--depth", "1"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
