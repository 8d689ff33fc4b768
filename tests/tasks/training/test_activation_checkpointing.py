"""Activation checkpointing in training: none, some or all blocks recomputed, the weights end at the same bits."""

import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from model.checkpoint import save_network
from model.network import Sana
from model.pruning import prune_network
from tasks.computing import ranks
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.runtime.context import Context
from tasks.stages import stage_of
from tasks.system import paths
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.network_config import network_config
from tasks.training.training_loop import Trainer
from tests.helpers.drawing_workspace import all_bytes, run
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES
from tests.kernels.processes import run_processes

SHORT = CHANGES | {
    "pretrain.depth": 3,
    "pretrain.steps": 6,
    "pretrain.evaluate_every": 3,
    "pretrain.checkpoint_every": 3,
}
IN_BACKWARD = {"pretrain.clip_norm": None, "pretrain.grad_accumulation": 1, "pretrain.step_in_backward": True}
RECOMPUTED = (0, 2, 3)  # none, some and all


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    return tmp_path


def written_by(stage: str, changes: dict[str, object], depth: int | None = None) -> dict[str, bytes]:
    """All files that a training writes, begun at its first step."""
    shutil.rmtree("state", ignore_errors=True)
    shutil.rmtree("out", ignore_errors=True)
    write_params(Path.cwd(), changes)
    params = load_params()
    return all_bytes(run(stage_of(stage, params, *([] if depth is None else [depth])), params, Path("out"))[1])


@pytest.mark.parametrize(
    "changes",
    [{"compute.dtype": "float32"}, {"compute.dtype": "bfloat16"}, IN_BACKWARD],
    ids=["float32", "bfloat16", "step-in-backward"],
)
def test_training_writes_the_same_bytes_with_none_some_or_all_blocks_recomputed(changes: dict[str, object]) -> None:
    none, *others = (written_by("pretrain", SHORT | changes | {"pretrain.recompute_blocks": n}) for n in RECOMPUTED)
    assert all(other == none for other in others)


def test_a_teacher_teaches_recomputed_blocks_what_it_teaches_others() -> None:
    grown, kept = small_network(5, seed=1), [0, 2, 3]
    cut = paths.model_folder("pruned-3")
    for folder, network in ((paths.GROWN, grown), (cut, prune_network(grown, kept))):
        folder.mkdir()
        save_network(network, folder)
    (cut / "pruning.json").write_text(json.dumps({"kept": kept}), encoding="utf-8")
    chosen = {"teacher": "features", "steps": 4, "batch_size": 8, "warmup_steps": 0}
    changes = {"compute.device": "cpu", "grow.depth": 5, "prune.depths": [3]}
    changes |= {f"finetune.{name}": value for name, value in chosen.items()}
    none, *others = (written_by("finetune", changes | {"finetune.recompute_blocks": n}, 3) for n in RECOMPUTED)
    assert all(other == none for other in others)


def train_on_ranks(folder: Path) -> None:
    """A short training for each parallelism and number of recomputed blocks, each into a folder of its own."""
    params, (number, count) = load_params(folder / PARAMS_FILE), (str(ranks.rank()), str(ranks.world_size()))
    # accelerate reads these, as torchrun would set them
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    for parallelism in ("ddp", "fully_shard"):
        for recomputed in RECOMPUTED:
            compute = replace(params.compute, parallelism=parallelism)
            chosen = replace(params, compute=compute, pretrain=replace(params.pretrain, recompute_blocks=recomputed))
            out = folder / f"{parallelism}-{recomputed}"
            out.mkdir(exist_ok=True)
            torch.manual_seed(0)
            network = Sana(network_config(chosen.network, chosen.pretrain.depth, 3, 6))
            with closing(open_spool(out / f"spool-{number}", "pretrain", tags={})) as spool:
                context = Context("pretrain", chosen, out, out / "state", Tracker(spool), "cpu", 1)
                Trainer(context, network, folder / paths.ENCODED, chosen.pretrain).run()
            AcceleratorState._reset_state(reset_partial_state=True)


def test_on_two_processes_recomputed_blocks_end_at_the_same_bits(workspace: Path) -> None:
    write_params(workspace, SHORT | {"compute.dtype": "bfloat16"})
    run_processes(2, workspace, train_on_ranks)
    for parallelism in ("ddp", "fully_shard"):
        none, *others = (load_file(workspace / f"{parallelism}-{n}" / "model.safetensors") for n in RECOMPUTED)
        for other in others:
            assert all(torch.equal(other[name], tensor) for name, tensor in none.items())
