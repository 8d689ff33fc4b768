"""Claims about published models, in and out: profiles that start from them run whole on small ones of their classes."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import SanaPipeline
from safetensors.torch import load_file

from flows.building.stage_graph import submit_stages
from model.checkpoint import load_network, save_network
from model.network import NetworkConfig, Sana
from model.weights.weight_files import read_weights
from tasks import export
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, PROFILES, apply_overrides, apply_profile, build_params, read_yaml
from tasks.runtime.stage_run import run_stage
from tasks.stages import stages_of
from tasks.system import paths
from tasks.system.files import read_json
from tasks.system.manifest import write_manifest
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE
from tests.helpers.published_folders import LINES, PATHS, write_folders, write_sana_1_0, write_transformer
from tests.helpers.small_workspace import PROJECT

WIDTH = 32
SHORT = {"steps": 2, "batch_size": 4, "grad_accumulation": 2, "warmup_steps": 1, "evaluate_every": 2}
SMALL: dict[str, Any] = {
    "compute": {"device": "cpu", "threads": 1, "branch_threads": 1},
    "shard": {"image_size": 64, "heldout_samples": 100},
    "encode": {"batch_size": 32},
    "network": {"hidden_size": WIDTH, "linear_head_dim": 16, "cross_heads": 2},
    "importance": {"times": [0.5]},
    "prune": {"random_choices": 1},
    "finetune": SHORT,
    "sampling": {"steps": 2, "batch_size": 8},
    "judge": {"prompts": 8, "images_per_prompt": 2, "calibration_prompts": 2, "calibration_images": 4},
    "evaluation": {"images_per_prompt": 4, "best_of": [1, 4], "adaptive_means": [2], "bootstrap_samples": 50},
    "report": {"grid_prompts": 2, "grid_images": 2},
}
"""What makes an experiment at SANA-1.5's scale small enough for a test; its stages, kinds of models and rules stay."""


def dotted(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, pairs in sections.items() for key, value in pairs.items()}


def write_params(profile: str | None, *changes: dict[str, Any]) -> Params:
    """The project's params with a profile and changes, as the working directory's own."""
    values = read_yaml(PROJECT / PARAMS_FILE)
    values = apply_profile(values, profile, PROJECT / PROFILES) if profile else values
    for overrides in changes:
        values = apply_overrides(values, overrides, "test")
    PARAMS_FILE.write_text(yaml.safe_dump(values), encoding="utf-8")
    return build_params(values, "test")


def run_all(params: Params) -> list[str]:
    """Run every stage of the graph here, one after the other, as its command would; returns their names."""

    def submit(name: str, _upstream: Sequence[str]) -> str:
        run_stage(stages_of(params)[name], params)
        return name

    return list(submit_stages(submit, params))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, whose stages tell a spool of their own what they do."""
    monkeypatch.chdir(tmp_path)
    with closing(open_spool(SPOOLS, "test", tags={})) as spool:
        monkeypatch.setenv(SPOOL_VARIABLE, str(spool.path))
    return tmp_path


def write_published(start: str) -> dict[str, Any]:
    """Every folder of the published kinds; returns the params that name them, and the network at `start`."""
    write_folders(Path("models"), pictures=1020)
    return {key: f"models/{name}" for key, name in PATHS.items()} | {"pretrain.path": f"models/{start}"}


def check_report(models: list[str]) -> dict[str, Any]:
    """What every experiment at the published scale must end with; returns the summary."""
    summary = read_json(Path("results/summary.json"))
    assert [model["name"] for model in summary["models"]] == models
    assert all(model["prompts"] == len(LINES) for model in summary["models"])
    assert summary["keep"] == 4 and "not GenEval's own" in summary["scorer"]["note"]
    assert read_json(paths.JUDGE / "vision_language.json")["path"] == "models/judge"
    return summary


def test_the_published_4_8b_is_cut_and_fine_tuned_without_other_training() -> None:
    folders = write_published("sana")
    write_transformer(Path("models/sana"), 5, WIDTH, 4, 16)
    depths = {"pretrain.depth": 5, "grow.depth": 5, "prune.depths": [3, 2]}
    params = write_params("prune-published", dotted(SMALL), folders, depths)
    assert "evaluate@small" not in run_all(params)
    check_report(["grown", "pruned-3", "finetuned-3", "pruned-2", "finetuned-2"])
    published = read_weights(Path("models/sana"))
    for folder in (paths.SMALL, paths.GROWN_INIT, paths.GROWN):
        taken = load_file(folder / "model.safetensors")
        assert taken.keys() == published.keys()
        assert all(torch.equal(tensor, published[name]) for name, tensor in taken.items()), folder
    kept = read_json(paths.model_folder("pruned-2") / "pruning.json")["kept"]
    cut = load_file(paths.model_folder("pruned-2") / "model.safetensors")
    assert torch.equal(cut["blocks.1.attn.qkv.weight"], published[f"blocks.{kept[1]}.attn.qkv.weight"])


def test_the_published_1_6b_gets_qk_norm_is_grown_without_its_last_blocks_and_cut() -> None:
    folders = write_published("sana-1.0.pth")
    write_sana_1_0(Path("models/sana-1.0.pth"), 10, WIDTH)
    trained = dotted({"pretrain": {"depth": 10, **SHORT, "steps": 1}, "train": SHORT})
    depths = {"grow.depth": 12, "prune.depths": [3]}
    params = write_params("grow-published", dotted(SMALL), folders, trained, depths)
    run_all(params)
    check_report(["small", "grown", "pruned-3", "finetuned-3"])
    small, grown = load_network(paths.SMALL), load_network(paths.GROWN_INIT)
    assert small.config.qk_norm and len(grown.blocks) == 12
    assert read_json(paths.GROWN_INIT / "growth.json")["chosen"]["drop"] == 1  # a tenth of 10, as 2 of 20
    for number, block in enumerate(grown.blocks):
        kept = torch.equal(block.attn.proj.weight, small.blocks[min(number, 9)].attn.proj.weight)
        assert kept == (number < 9) and (block.attn.proj.weight == 0).all() == (number >= 9)


def test_the_papers_own_experiment_runs_on_published_encoders_scorer_and_judge() -> None:
    folders = write_published("none") | {"pretrain.path": None}
    trained = dotted({"pretrain": {"depth": 2, **SHORT}, "train": SHORT, "sft": SHORT})
    chosen = {"data.sets": {"like_geneval": {"path": folders["shard.path"]}}}
    params = write_params("paper", dotted(SMALL), folders, trained, {"grow.depth": 3, "prune.depths": [2]}, chosen)
    run_all(params)
    check_report(["small", "grown", "pruned-2", "finetuned-2", "sft-grown"])
    assert {tuple(shape) for shape in read_shapes()} > {(4, 16, 16)}  # aspect buckets: latents of several sizes


def test_the_cascade_goes_on_with_the_weights_of_another_workspace_at_larger_pictures() -> None:
    folders = write_published("none")
    small = Sana(NetworkConfig(4, WIDTH, 2, 16, 2, 2.5, 1, 16, True, "nvlabs"))
    Path("outputs-512").mkdir()
    save_network(small, Path("outputs-512"))
    write_manifest(Path("outputs-512"))
    trained = dotted({"pretrain": {"depth": 2, **SHORT}, "sft": SHORT})
    chosen = {"data.sets": {"like_geneval": {"path": folders["shard.path"]}}, "pretrain.path": "outputs-512"}
    depths = {"grow.depth": 2, "prune.depths": [1], "shard.min_prompt_score": None, "shard.image_size": 128}
    params = write_params("paper-1024", dotted(SMALL), folders, trained, depths, chosen)
    assert run_all(params)[-2:] == ["evaluate@sft-grown", "report"]
    check_report(["grown", "pruned-1", "finetuned-1", "sft-grown"])
    assert read_json(paths.START)["path"] == "outputs-512"


def read_shapes() -> list[tuple[int, ...]]:
    """Shapes of the cached latents."""
    dataset = EncodedDataset(paths.ENCODED, "train")
    return [tuple(dataset.batch(group[:1]).latents_BCHW.shape[1:]) for group in dataset.shape_groups]


def test_a_20_block_folder_of_diffusers_goes_in_and_comes_out_with_10_fine_tuned_blocks() -> None:
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "smoke", PROJECT / PROFILES)
    shape = values["autoencoder"]["latent_channels"], values["text_encoder"]["hidden_size"]
    write_transformer(Path("sana-20-blocks"), 20, 64, *shape)
    as_it_is = {"steps": 0, "warmup_steps": 0}
    changes = {
        "compute": {"threads": 1, "branch_threads": 1, "dtype": "float32"},
        "workflow": {"baselines": ["grown"]},
        "network": {"hidden_size": 64, "linear_head_dim": 16, "cross_heads": 4},
        "pretrain": {"path": "sana-20-blocks", "depth": 20, **as_it_is},
        "grow": {"depth": 20, "drop_share": 0.0},
        "train": as_it_is,
        "prune": {"depths": [10], "random_choices": 1},
        "finetune": {"steps": 4, "warmup_steps": 1},
        "geneval": {"prompts_per_task": 1},
        "evaluation": {"images_per_prompt": 2, "best_of": [1, 2], "bootstrap_samples": 50},
    }
    run_all(write_params("smoke", dotted(changes)))
    pruned, tuned = (load_file(Path(f"outputs/{kind}-10/model.safetensors")) for kind in ("pruned", "finetuned"))
    assert any(not torch.equal(tensor, tuned[name]) for name, tensor in pruned.items())

    export.main(["--model", "finetuned-10", "--out", "sana-10-blocks"])
    pipeline = SanaPipeline.from_pretrained("sana-10-blocks", local_files_only=True)
    assert pipeline.transformer.config.num_layers == 10
    pipeline.set_progress_bar_config(disable=True)
    options = {"complex_human_instruction": None, "use_resolution_binning": False, "output_type": "np"}
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 32}
    (picture,) = pipeline("a photo of a red circle", generator=torch.manual_seed(0), **size, **options).images
    assert picture.shape == (32, 32, 3) and np.isfinite(picture).all() and picture.std() > 0
    card = Path("sana-10-blocks/README.md").read_text(encoding="utf-8")
    assert "SANA-1.5 of 10 blocks" in card and "sana-20-blocks" in card and "grown by" not in card
