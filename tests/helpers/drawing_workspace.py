"""A workspace of tiny untrained models, for tests of the stages that draw pictures."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from model.autoencoder import build_autoencoder
from model.checkpoint import save_network
from model.network import NetworkConfig, Sana
from model.text_encoder import Reading, build_text_encoder, train_tokenizer
from tasks.data.scene_vocabulary import TASKS, lines
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, save_judge
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_run import computation_of
from tasks.shard import write_scenes
from tasks.stages import Stage, stage_of
from tasks.system import paths
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import Tracker

TEXT_CHANNELS = 16
CHANGES = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "shard.image_size": 16,
    "text_encoder.max_tokens": 16,
    "pretrain.depth": 1,
    "grow.depth": 3,
    "prune.depths": [2],
    "sampling.steps": 2,
    "sampling.batch_size": 24,
    "judge.prompts": 12,
    "judge.images_per_prompt": 2,
    "judge.calibration_prompts": 5,
    "judge.calibration_images": 4,
    "judge.shard_pictures": 6,
    "judge.steps": 3,
    "judge.batch_size": 8,
    "geneval.prompts_per_task": 2,
    "evaluation.images_per_prompt": 5,
    "evaluation.images_per_pruned_prompt": 3,
    "evaluation.best_of": [1, 2, 4],
    "evaluation.bootstrap_samples": 50,
}


def write_workspace() -> Params:
    """Fill the working directory with params and every model that drawing needs; returns the params."""
    values = apply_overrides(read_yaml(Path(__file__).parents[2] / PARAMS_FILE), CHANGES, "test")
    PARAMS_FILE.write_text(yaml.safe_dump(values), encoding="utf-8")
    torch.manual_seed(0)
    autoencoder = build_autoencoder(4, (8, 8), 1)
    tokenizer = train_tokenizer([line["prompt"] for task in TASKS for line in lines(task)], 320)
    text_encoder = build_text_encoder(tokenizer, TEXT_CHANNELS, 1, 2, Reading(16, "none", "diffusers", "stored"))
    for folder in (paths.AUTOENCODER, paths.TEXT_ENCODER, paths.JUDGE):
        folder.mkdir(parents=True)
    autoencoder.save(paths.AUTOENCODER)
    text_encoder.save(paths.TEXT_ENCODER)
    save_judge(JudgeNetwork(JudgeConfig(TEXT_CHANNELS)), paths.JUDGE)
    for name, depth in (("small", 1), ("grown", 3), ("pruned-2", 2)):
        folder = paths.model_folder(name)
        folder.mkdir()
        save_network(Sana(NetworkConfig(4, 16, depth, 8, 2, 2.0, 1, TEXT_CHANNELS, True, "diffusers")), folder)
    params = build_params(values, "test")
    write_shards(params)
    run(stage_of("scorer", params), params)
    return params


def write_shards(params: Params, train: int = 8, heldout: int = 4) -> None:
    """Shards of a few scenes."""
    paths.SHARDS.mkdir()
    write_scenes(paths.SHARDS, replace(params.shard, train_samples=train, heldout_samples=heldout), seed=0)


def run(
    stage: Stage, params: Params, out: Path | None = None, compute: Callable[..., Metrics] | None = None
) -> tuple[Metrics, Path]:
    """The stage's metrics and its output folder, `out` where it is not the stage's own.

    `compute` takes the place of the stage's own computation.
    """
    out = out or stage.output
    out.mkdir(parents=True)
    with closing(open_spool(SPOOLS, stage.name, tags={})) as spool:
        context = Context(stage.name, params, out, Path("state"), Tracker(spool), "cpu", 1)
        return (compute or computation_of(stage))(context, *stage.arguments), out


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
