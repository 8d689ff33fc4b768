"""Claims about the plan's rows: what they say is what the stages do, on workspaces of tiny models."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from flows.building.stage_graph import submit_stages
from kernels.optimizers import build_optimizer
from model.block_importance import block_importance
from model.checkpoint import load_network, save_network
from model.network import Sana
from model.text_encoder import TextEncoder, instruction_text, save_reading, train_tokenizer
from tasks import plan as command
from tasks.data.picture_dataset import PictureDataset
from tasks.data.shards import SPLITS
from tasks.evaluation.short_evaluation import PROMPTS
from tasks.evaluation.short_scoring import open_short_scoring
from tasks.params.experiment_params import Params
from tasks.params.params_files import apply_overrides, apply_profile, build_params, load_params, read_yaml
from tasks.planning import data_stage_costs, disk_bytes, network_stage_costs, picture_stage_costs, scorer_stage_costs
from tasks.planning.cost_plan import Plan, Settings, make_plan
from tasks.planning.cost_row import Cost, Memory
from tasks.planning.count_without_data import count_peak_bytes, without_data
from tasks.planning.drawing_share import drawing_note, score_flops
from tasks.planning.encoder_models import DC_AE, GEMMA_2_2B, build_encoders, parameters_of
from tasks.planning.encoder_runs import EncoderRuns
from tasks.planning.experiment_scale import CHARACTERS_PER_TOKEN, Captions, Scale, measure_scale, tokens_of
from tasks.planning.gpu_hours import gpu_hours
from tasks.planning.parameter_shapes import parameters
from tasks.planning.plan_notes import notes
from tasks.planning.plan_table import print_plan
from tasks.planning.planned_experiment import Experiment, evaluations, micro_batch, open_experiment, text_rows
from tasks.planning.training_memory import Batch, activation_bytes, autocast_bytes
from tasks.runtime.context import Context, Metrics
from tasks.shard import write_scenes
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.readable_digits import FLOPS, scaled
from tasks.training.ema import Ema
from tasks.training.text_encoder_loss import reading
from tasks.training.training_batch import FlowMatchingLoss
from tasks.training.training_loop import Trainer
from tasks.training.training_state import History, save_state
from tests.helpers import drawing_workspace
from tests.helpers.measured_flops import measured_flops
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params

ROOT = Path(__file__).parents[3]
TOKENS = 7
MIB = 2**20


def params_of(profile: str | None = None, **changes: Any) -> Params:
    """The default, or a profile's params, with `section__key=value` changed."""
    values = read_yaml(ROOT / "params.yaml")
    if profile is not None:
        values = apply_profile(values, profile, ROOT / "profiles")
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    return build_params(apply_overrides(values, overrides, "test"), "test")


def scale_of(train: int, heldout: int, tokens: int = TOKENS, **more: Any) -> Scale:
    """Sizes with captions of equal length."""
    known = {
        "png_bytes": (0.0,),
        "evaluation_prompts": 0,
        "judge_prompts": 0,
        "unseen_prompts": 0,
        "prompt_tokens": tokens,
    }
    return Scale(train, heldout, Captions(("x",), (tokens,), tokens), **(known | more), assumptions=())


# stages on encoded samples

TRAINED = {
    "compute.device": "cpu",
    "compute.dtype": "float32",
    "shard.image_size": 32,
    "network.hidden_size": 16,
    "network.linear_head_dim": 8,
    "network.cross_heads": 2,
    "pretrain.depth": 2,
    "pretrain.steps": 5,
    "pretrain.batch_size": 6,
    "pretrain.grad_accumulation": 2,
    "pretrain.warmup_steps": 0,
    "pretrain.evaluate_every": 2,
    "pretrain.checkpoint_every": 3,
    "grow.depth": 5,
    "importance.prompts": 100,
    "importance.batch_size": 40,
    "importance.times": [0.2, 0.5, 0.8],
    "prune.depths": [4, 3],
    "prune.random_choices": 3,
}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A workspace of encoded samples, of one length in every micro-batch, and the experiment that it is."""
    write_params(tmp_path, TRAINED)
    write_encoded(tmp_path, train=6, heldout=120, tokens=(4,))
    monkeypatch.chdir(tmp_path)
    for folder, depth in ((paths.SMALL, 2), (paths.GROWN, 5)):
        folder.mkdir()
        save_network(small_network(depth), folder)
    encoders = SimpleNamespace(
        autoencoder=SimpleNamespace(latent_channels=3, downsampling=8), caption_channels=6, stand_ins=()
    )
    return Experiment(load_params(), scale_of(6, 120, tokens=4), encoders, gpus=1)


@pytest.mark.parametrize("recomputed", [0, 1, 2], ids=["none", "some", "all"])
def test_training_costs_what_the_training_loop_does(trained: Experiment, recomputed: int) -> None:
    chosen = replace(trained.params.pretrain, recompute_blocks=recomputed)
    trained = replace(trained, params=replace(trained.params, pretrain=chosen))
    cost = network_stage_costs.training(trained, "pretrain", chosen.depth, chosen)
    stage, out = stage_of("pretrain", trained.params), Path("again")
    assert measured_flops(lambda: drawing_workspace.run(stage, trained.params, out)) == cost.flops
    with safe_open(out / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())
    assert cost.parameters == count
    assert cost.outputs == 4 * count


def test_training_holds_the_weights_ema_and_optimizer_state_that_the_plan_says(trained: Experiment) -> None:
    params, trainers = trained.params, []

    def train(context: Context) -> Metrics:
        network = Sana(trained.config(params.pretrain.depth))
        trainers.append(Trainer(context, network, paths.ENCODED, params.pretrain))
        return trainers[0].run()

    drawing_workspace.run(stage_of("pretrain", params), params, Path("again"), train)
    (trainer,) = trainers
    states = trainer.optimizer.optimizer.state.values()
    row = network_stage_costs.training(trained, "pretrain", params.pretrain.depth, params.pretrain).memory
    assert row.weights == row.gradients == sum(weight.nbytes for weight in trainer.network.parameters())
    assert row.ema == sum(average.nbytes for average in trainer.ema.average)
    assert row.optimizer == sum(tensor.nbytes for state in states for tensor in state.values())
    saved = activation_bytes(trained.config(2), Batch(3, 16, 4), trained.precision)  # 6 samples in 2 passes
    evaluated = trained.network_runs.loss_peak(2, 120, 4)
    assert row.total == row.weights + row.ema + row.optimizer + max(row.gradients + saved, evaluated)


@pytest.mark.parametrize(
    ("profile", "stage", "depth"),
    [
        ("paper", "pretrain", 20),
        ("paper", "train", 60),
        ("paper", "sft", 60),
        ("paper-1024", "pretrain", 60),
        ("paper-1024", "sft", 60),
    ],
)
def test_the_trainings_of_the_paper_s_profiles_leave_a_tenth_of_a_gpu_of_80_gb_free(
    profile: str, stage: str, depth: int
) -> None:
    params = params_of(profile)
    experiment = Experiment(params, scale_of(1000, 512, tokens=300), build_encoders(params, ()), gpus=1)
    chosen = getattr(params, stage)
    assert network_stage_costs.training(experiment, stage, depth, chosen).memory.total < 72e9
    kept = replace(chosen, recompute_blocks=0)
    assert network_stage_costs.training(experiment, stage, depth, kept).memory.total > 80e9


def test_weights_that_are_not_trained_on_cost_their_held_out_loss(trained: Experiment) -> None:
    config = replace(trained.config(2), caption_channels=6)
    Path("published").mkdir()
    save_network(Sana(config), Path("published"))
    chosen = replace(trained.params.pretrain, path="published/model.safetensors", steps=0, warmup_steps=0)
    params = replace(trained.params, pretrain=chosen)
    cost = network_stage_costs.training(replace(trained, params=params), "pretrain", chosen.depth, chosen)
    done = measured_flops(lambda: drawing_workspace.run(stage_of("pretrain", params), params, Path("again")))
    assert done == cost.flops
    assert cost.state == cost.memory.optimizer == cost.memory.gradients == 0


def test_growing_costs_what_the_stage_does(trained: Experiment) -> None:
    done = measured_flops(lambda: drawing_workspace.run(stage_of("grow", trained.params), trained.params))
    assert done == network_stage_costs.grow(trained).flops


def test_importance_and_pruning_cost_what_the_stages_do(trained: Experiment) -> None:
    params = trained.params
    done = measured_flops(lambda: drawing_workspace.run(stage_of("importance", params), params))
    assert done == network_stage_costs.importance(trained).flops
    done = measured_flops(lambda: drawing_workspace.run(stage_of("prune", params, 3), params))
    assert done == network_stage_costs.prune(trained, 3).flops


@pytest.mark.parametrize("teacher", ["none", "velocity", "features"])
def test_a_fine_tune_costs_what_the_stage_does_with_and_without_a_teacher(trained: Experiment, teacher: str) -> None:
    short = {"steps": 3, "batch_size": 6, "warmup_steps": 0, "evaluate_every": 2, "checkpoint_every": 3}
    params = replace(trained.params, finetune=replace(trained.params.finetune, teacher=teacher, **short))
    cut = paths.model_folder("pruned-3")
    cut.mkdir()
    save_network(small_network(3), cut)
    (cut / "pruning.json").write_text('{"kept": [0, 1, 4]}', encoding="utf-8")
    stage = stage_of("finetune", params, 3)
    done = measured_flops(lambda: drawing_workspace.run(stage, params, Path("again")))
    cost = network_stage_costs.finetune(replace(trained, params=params), stage.name, 3)
    assert done == cost.flops


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_state_on_disk_is_what_training_saves(trained: Experiment, decay: float) -> None:
    chosen = trained.params.pretrain
    config = replace(trained.config(chosen.depth), hidden_size=160, linear_head_dim=16)
    network = Sana(config)
    optimizer = build_optimizer("came8bit", network.parameters(), 1e-3, 0.0)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    folder = Path("state")
    average = Ema(network, decay)
    save_state(folder, 1, network, average, optimizer, History())
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *average.average))
    assert len(average.average) == (len(list(network.parameters())) if decay else 0)
    expected = disk_bytes.state_bytes("came8bit", config, weights) / 3  # of three generations
    entries = 3 * sum(1 for _ in network.parameters())
    assert expected <= written <= expected + 1500 * entries  # names, shapes and padding of each tensor


# stages on pictures

DRAWN = {
    "autoencoder.latent_channels": 4,
    "autoencoder.block_channels": [8, 8],
    "autoencoder.layers_per_block": 1,
    "autoencoder.steps": 2,
    "autoencoder.batch_size": 4,
    "text_encoder.hidden_size": 16,
    "text_encoder.layers": 1,
    "text_encoder.heads": 2,
    "text_encoder.vocabulary": 320,
    "text_encoder.steps": 2,
    "text_encoder.batch_size": 4,
    "encode.batch_size": 8,
    "network.hidden_size": 16,
    "network.linear_head_dim": 8,
    "network.cross_heads": 2,
    "network.mlp_ratio": 2.0,
}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A workspace of models that draw, all of whose prompts have as many tokens, and the experiment that it is."""
    monkeypatch.chdir(tmp_path)
    return drawing_experiment(monkeypatch)


def drawing_experiment(monkeypatch: pytest.MonkeyPatch, instruction_tokens: int = 0, **changes: Any) -> Experiment:
    """A workspace that draws, in the working directory, and its experiment, with `section__key=value` changed."""
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    monkeypatch.setattr(drawing_workspace, "CHANGES", drawing_workspace.CHANGES | DRAWN | overrides)

    def tokens(_self: TextEncoder, captions: Sequence[str]) -> list[list[int]]:
        return [[2] * (instruction_tokens + (TOKENS if caption else 1)) for caption in captions]

    params = drawing_workspace.write_workspace()
    monkeypatch.setattr(TextEncoder, "tokens", tokens)
    written = replace(params.shard, train_samples=8, heldout_samples=4)
    found = measure_scale(replace(params, shard=written))
    counts = {name: getattr(found, name) for name in ("evaluation_prompts", "judge_prompts", "unseen_prompts")}
    captions = tuple(PictureDataset(paths.SHARDS, "train").captions)
    return Experiment(params, scale_of(8, 4, **counts), build_encoders(params, captions), gpus=1)


@pytest.mark.parametrize(("model", "depth"), [("small", 1), ("pruned-2", 2)])
def test_an_evaluation_costs_what_the_stage_does(drawn: Experiment, model: str, depth: int) -> None:
    cost = picture_stage_costs.evaluate(drawn, model, depth)
    stage = stage_of("evaluate", drawn.params, model)
    assert measured_flops(lambda: drawing_workspace.run(stage, drawn.params)) == cost.flops
    pool = sum((stage.output / name).stat().st_size for name in ("pictures.npy", "pool.safetensors"))
    assert 0 <= pool - cost.outputs <= 1000  # their headers; PNGs have no bytes here


def test_drawing_under_the_other_numerics_costs_what_the_stages_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = drawing_experiment(monkeypatch, network__numerics="nvlabs")
    for name in ("small", "grown"):
        network = load_network(paths.model_folder(name))
        network.config = replace(network.config, numerics="nvlabs")
        save_network(network, paths.model_folder(name))
    save_reading(reading(drawn.params), paths.TEXT_ENCODER)
    stages = (
        (stage_of("evaluate", drawn.params, "small"), picture_stage_costs.evaluate(drawn, "small", 1)),
        (stage_of("controls", drawn.params), picture_stage_costs.controls(drawn)),
        (stage_of("encode", drawn.params), data_stage_costs.encode(drawn)),
    )
    for stage, cost in stages:
        assert measured_flops(lambda stage=stage: drawing_workspace.run(stage, drawn.params)) == cost.flops


def test_an_instruction_lengthens_what_the_text_encoder_learns_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = len(instruction_text("sana", "diffusers")) // CHARACTERS_PER_TOKEN
    drawn = drawing_experiment(monkeypatch, before, text_encoder__instruction="sana")
    stage = stage_of("text_encoder", drawn.params)
    done = measured_flops(lambda: drawing_workspace.run(stage, drawn.params, Path("again")))
    assert done == data_stage_costs.text_encoder(drawn).flops


def test_a_vision_language_judge_is_neither_counted_nor_said_to_be(drawn: Experiment) -> None:
    chosen = replace(drawn.params.judge, kind="vision_language", path="judge")
    asked = Experiment(replace(drawn.params, judge=chosen), drawn.scale, drawn.encoders, gpus=1)
    with_own, without = (picture_stage_costs.evaluate(each, "small", 1) for each in (drawn, asked))
    judge_bytes = sum(tensor.nbytes for tensor in drawn.encoders.judge.state_dict().values())
    assert with_own.memory.weights - without.memory.weights == judge_bytes
    prompts, images = drawn.scale.evaluation_prompts, drawn.params.evaluation.images_per_prompt
    assert with_own.flops - without.flops == 2 * drawn.judging_flops(prompts, images)
    said = " ".join(notes(asked, [], 312, 0.4))
    assert "vision-language judge" in said
    assert "this project's own" not in said


def test_a_score_while_it_trains_costs_what_the_plan_says(drawn: Experiment) -> None:
    network = load_network(paths.SMALL)
    done = measured_flops(lambda: open_short_scoring(drawn.params, PROMPTS, "cpu").score(network))
    assert done == score_flops(drawn, 1) > 0


def test_the_plan_says_the_share_of_pictures_and_scores_where_there_are_any(drawn: Experiment) -> None:
    steps, one = drawn.params.pretrain.steps, score_flops(drawn, drawn.params.pretrain.depth)

    def note(preview_every: int, score_every: int) -> str:
        chosen = replace(drawn.params.pretrain, preview_every=preview_every, score_every=score_every)
        experiment = replace(drawn, params=replace(drawn.params, pretrain=chosen))
        return "".join(drawing_note(experiment, [Cost("pretrain", flops=2 * steps * one), Cost("grow", flops=1)]))

    def percent(said: str) -> float:
        return float(said.partition("more: pretrain ")[2].partition("%.")[0])

    assert note(0, 0) == ""
    assert percent(note(0, 1)) == 50 and percent(note(0, 2)) == 25
    assert percent(note(1, 1)) == pytest.approx(50 + percent(note(1, 0)), abs=0.11) and percent(note(1, 0)) > 0


def test_judge_and_controls_cost_what_the_stages_do(drawn: Experiment) -> None:
    for stage, cost in (("judge", picture_stage_costs.judge), ("controls", picture_stage_costs.controls)):
        folder = stage_of(stage, drawn.params).output
        out = folder.with_name(f"{folder.name}-again")
        done = measured_flops(
            lambda stage=stage, out=out: drawing_workspace.run(stage_of(stage, drawn.params), drawn.params, out)
        )
        assert done == cost(drawn).flops


def measured_again(experiment: Experiment, stem: str) -> tuple[int, Path]:
    """The operations of a stage, run into another folder, and that folder."""
    out = Path(f"{stem}-again")
    stage = stage_of(stem, experiment.params)
    return measured_flops(lambda: drawing_workspace.run(stage, experiment.params, out)), out


def test_the_scorer_and_the_latency_cost_what_the_stages_do(drawn: Experiment) -> None:
    flops, out = measured_again(drawn, "scorer")
    cost = scorer_stage_costs.scorer(drawn)
    assert flops == cost.flops
    assert 0 <= (out / "real_features.npy").stat().st_size - cost.outputs <= 128  # the header
    assert measured_again(drawn, "latency")[0] == scorer_stage_costs.latency(drawn).flops


def test_matching_costs_what_the_stages_do_but_for_captions_that_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matching = {"evaluation__scorer": "matching", "matching__steps": 2, "matching__choices": 3}
    asked = drawing_experiment(monkeypatch, **matching)
    # A caption that repeats in a batch is encoded and read once, and is counted each time.
    for stem, count in (("scorer", scorer_stage_costs.scorer), ("judge", picture_stage_costs.judge)):
        flops, _ = measured_again(asked, stem)
        assert 0.5 * count(asked).flops < flops <= count(asked).flops  # of 8 samples, most repeat
    assert measured_again(asked, "controls")[0] == picture_stage_costs.controls(asked).flops
    evaluate = stage_of("evaluate", asked.params, "small")
    flops = measured_flops(lambda: drawing_workspace.run(evaluate, asked.params))
    assert flops == picture_stage_costs.evaluate(asked, "small", 1).flops


def test_encoding_costs_what_the_stage_does_and_writes_the_bytes_that_it_says(drawn: Experiment) -> None:
    captions = [text for split in SPLITS for text in PictureDataset(paths.SHARDS, split).captions]
    assert len(set(captions[:8])) == 8  # a repeated one would be encoded once
    cost = data_stage_costs.encode(drawn)
    stage = stage_of("encode", drawn.params)
    assert measured_flops(lambda: drawing_workspace.run(stage, drawn.params)) == cost.flops
    written = sum(path.stat().st_size for path in stage.output.glob("*.tar"))
    assert written == cost.outputs


def test_training_the_encoders_costs_what_the_stages_do(drawn: Experiment) -> None:
    stages = (("autoencoder", data_stage_costs.autoencoder), ("text_encoder", data_stage_costs.text_encoder))
    for stage, cost in stages:
        out = Path(f"{stage}-again")
        done = measured_flops(
            lambda stage=stage, out=out: drawing_workspace.run(stage_of(stage, drawn.params), drawn.params, out)
        )
        assert done == cost(drawn).flops
        weights = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        assert 0 <= weights - cost(drawn).outputs <= 20_000  # headers


def test_pictures_shards_have_the_bytes_that_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of("smoke", shard__train_samples=300, shard__samples_per_shard=64, shard__heldout_samples=50)
    write_scenes(tmp_path, params.shard, params.compute.seed)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    experiment = Experiment(params, measure_scale(params), encoders=None, gpus=1)
    assert data_stage_costs.shard(experiment).outputs == pytest.approx(
        written, rel=0.02
    )  # the plan renders 64 pictures


def test_a_peak_of_a_deep_network_is_told_by_two_shallow_ones(trained: Experiment) -> None:
    runs, depth = trained.network_runs, 5
    deep = without_data(lambda: Sana(trained.config(depth)))
    batch = runs.batch(9, 4)

    def loss() -> None:
        with torch.no_grad():
            FlowMatchingLoss(deep)(runs.batch(9, 4))

    def measure() -> None:
        with torch.no_grad():
            inner = runs.batch(9, 4)
            text = deep.encode_text(inner.text_BTE, inner.mask_BT)
            block_importance(deep, inner.latents_BCHW, inner.noise_BCHW, text, [0.5])

    assert runs.loss_peak(depth, 9, 4) == count_peak_bytes(loss) > batch.latents_BCHW.nbytes
    assert runs.importance_peak(depth, 9, 4) == count_peak_bytes(measure)


# the published encoders


def test_the_published_encoders_have_their_published_sizes() -> None:
    encoders = build_encoders(params_of("paper"), ())
    assert encoders.stand_ins == ("autoencoder.path", "text_encoder.path")
    assert parameters_of(encoders.autoencoder.network) / 1e6 == pytest.approx(312.25, abs=0.01)
    assert parameters_of(encoders.text_encoder) / 1e9 == pytest.approx(2.614, abs=0.001)
    autoencoder = encoders.autoencoder
    assert (autoencoder.downsampling, autoencoder.latent_channels, encoders.caption_channels) == (32, 32, 2304)


def test_a_prompt_costs_gemma_two_operations_a_weight_and_token_and_its_attention() -> None:
    params, text = params_of("paper", text_encoder__instruction="none"), 20
    runs = EncoderRuns(params, build_encoders(params, ()))
    shape = GEMMA_2_2B
    vocabulary = shape["vocab_size"] * shape["hidden_size"]
    norms = 4 * shape["num_hidden_layers"] * shape["hidden_size"] + shape["hidden_size"]
    weights = parameters_of(runs.encoders.text_encoder) - vocabulary - norms
    scores = 2 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"] * text**2
    assert runs.text_flops(text) == 2 * (weights * text + scores)


def test_a_folder_that_is_there_is_read_for_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GEMMA_2_2B, "num_hidden_layers": 2, "hidden_size": 64}))
    params = params_of("paper", text_encoder__path=str(tmp_path))
    encoders = build_encoders(params, ())
    assert (encoders.caption_channels, encoders.stand_ins) == (64, ("autoencoder.path",))
    assert DC_AE["latent_channels"] == encoders.autoencoder.latent_channels


# what the rows are made of


def test_words_of_scenes_and_prompts_are_a_token_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = measure_scale(params_of()).captions.texts
    tokenizer = train_tokenizer(texts, params_of().text_encoder.vocabulary)
    assert [len(ids) for ids in tokenizer(list(texts))["input_ids"]] == [tokens_of(text) for text in texts]


def test_gpus_share_micro_batches_and_beyond_them_the_samples() -> None:
    training = params_of("paper").train  # 1024 in 64 passes
    assert [micro_batch(training, gpus) for gpus in (1, 8, 64, 128, 1024)] == [16, 16, 16, 8, 1]
    assert micro_batch(training, 8, asked=8) == 2  # params that ask for processes say how many passes each makes


def test_what_fully_shard_cuts_is_divided_among_the_gpus_that_params_ask_for() -> None:
    once = {f"{name}__grad_accumulation": 1 for name in ("pretrain", "train", "finetune")}
    params = params_of("smoke", compute__processes_per_node=2, **once)
    whole, part = (make_plan(params, Settings(parallelism=kind), "") for kind in ("ddp", "fully_shard"))
    for one, other in zip(whole.costs, part.costs, strict=True):
        cut = one.stage.startswith(("pretrain", "train", "finetune"))
        for name in ("weights", "ema", "gradients", "optimizer"):
            assert getattr(other.memory, name) == getattr(one.memory, name) // (2 if cut else 1), one.stage


def paper_train(gpus: int, parallelism: str, **changes: Any) -> tuple[Experiment, Memory]:
    """The paper's experiment on so many GPUs, and the memory of its stage train on each."""
    params = params_of("paper", compute__parallelism=parallelism, **changes)
    experiment = Experiment(params, scale_of(1000, 512, tokens=300), build_encoders(params, ()), gpus)
    return experiment, network_stage_costs.training(experiment, "train", params.grow.depth, params.train).memory


@pytest.mark.parametrize(
    ("gpus", "parallelism", "shards", "replicas", "gradients"),
    [
        (1, "fully_shard", 1, 1, 1),
        (8, "ddp", 1, 8, 1),
        (8, "fully_shard", 8, 1, 1),  # 8 micro-batches a step: each rank has whole gradients in float32
        (64, "fully_shard", 64, 1, 64),  # one micro-batch a step
        (8, "hybrid_shard", 8, 1, 1),  # one group, as under fully_shard
        (32, "hybrid_shard", 8, 4, 8),  # 2 micro-batches a step; groups sum at each
    ],
)
def test_gradients_of_the_paper_s_4_8b_are_whole_only_over_several_micro_batches_of_one_group(
    gpus: int, parallelism: str, shards: int, replicas: int, gradients: int
) -> None:
    experiment, memory = paper_train(gpus, parallelism)
    assert (experiment.shards, experiment.replicas) == (shards, replicas)
    weights = 4 * parameters(experiment.config(60))
    assert memory.gradients == weights // gradients
    assert memory.weights == memory.ema == weights // shards


def test_shards_keep_no_copies_of_autocast_and_gather_two_blocks_at_a_time() -> None:
    (experiment, alone), (_, shards) = (
        paper_train(8, kind, train__recompute_blocks=0) for kind in ("ddp", "hybrid_shard")
    )
    config, blocks = experiment.config(60), experiment.config(2)
    copies, gathered = autocast_bytes(config, "bfloat16"), 2 * parameters(blocks)
    assert alone.activations - shards.activations == copies - gathered > 8e9


def test_the_notes_say_what_each_gpu_holds_whole() -> None:
    for gpus, parallelism, whole in ((8, "fully_shard", True), (64, "hybrid_shard", False), (8, "ddp", False)):
        experiment, _ = paper_train(gpus, parallelism)
        said = notes(experiment, [], 312, 0.4)[-1]
        assert ("whole gradients in float32" in said and "in pretrain, train, " in said) == whole, said
        assert ("one of 8 parts" in said) == (parallelism != "ddp")


def test_held_out_losses_are_counted_as_the_loop_takes_them() -> None:
    training = replace(params_of().train, warmup_steps=0)
    runs = {
        (steps, every): 1 + len({*range(every, steps + 1, every), steps}) for steps in (5, 6) for every in (2, 3, 9)
    }
    assert {key: evaluations(replace(training, steps=key[0], evaluate_every=key[1])) for key in runs} == runs


def test_text_rows_are_every_batchs_distinct_prompts() -> None:
    for prompts, images, batch in ((3, 5, 4), (7, 1, 3), (2, 9, 32), (5, 4, 4)):
        pairs = [i // images for i in range(prompts * images)]
        batches = [set(pairs[start : start + batch]) for start in range(0, len(pairs), batch)]
        assert text_rows(prompts, images, batch) == sum(len(rows) for rows in batches)


def test_gpu_hours_are_operations_over_the_rate_reached() -> None:
    assert gpu_hours(312e12 * 0.4 * 7200, 312, 0.4) == pytest.approx(2)


# the command


@pytest.fixture(scope="module")
def smoke() -> Plan:
    return make_plan(params_of("smoke"), Settings(), "profile smoke")


def test_every_stage_of_the_graph_has_its_row(smoke: Plan) -> None:
    names = submit_stages(lambda name, _upstream: name, params_of("smoke"))
    assert sorted(cost.stage for cost in smoke.costs) == sorted(names)


def printed(plan: Plan) -> list[str]:
    text = io.StringIO()
    print_plan(plan, Console(file=text, width=140, highlight=False))
    return text.getvalue().splitlines()


def test_the_table_is_plain_and_fits_140_columns_also_with_the_largest_figures(smoke: Plan) -> None:
    big = Cost("evaluate@finetuned-40", 999 * 10**9, Memory(*[888 * 10**9] * 5), 10**24, 888 * 10**12, 888 * 10**9)
    for plan in (smoke, replace(smoke, costs=[big])):
        lines = printed(plan)
        assert max(map(len, lines)) <= 140
        assert not any("…" in line or "\x1b" in line for line in lines)
        for cost in plan.costs:
            (row,) = [line for line in lines if line.startswith(f"{cost.stage} ")]
            assert scaled(cost.flops, FLOPS) in re.split(r"\s{2,}", row.strip())


def test_figures_have_three_digits() -> None:
    shown = [scaled(value, FLOPS) for value in (0, 1, 999.4, 999.6, 12_345, 9.996e6, 4.9e13)]
    assert shown == ["–", "1.00", "999", "1.00 k", "12.3 k", "10.0 M", "49.0 T"]


def test_the_total_is_of_all_stages(smoke: Plan) -> None:
    record = smoke.record()
    rows, total = record["stages"], record["total"]
    for name in ("flops", "gpu_hours", "outputs"):
        assert total[name] == pytest.approx(sum(row[name] for row in rows))
    assert total["memory"] == max(row["memory"]["total"] for row in rows)
    assert all(sum(row["memory"].values()) == 2 * row["memory"]["total"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpus", "0"], "--gpus is 0"),
        (["--utilisation", "1.5"], "--utilisation is 1.5"),
        (["--gpu-tflops", "-1"], "--gpu-tflops is -1.0"),
        (["--json", "docs"], "--json docs is a folder"),
        (["--profile", "papr"], "profile 'papr' is unknown"),
        (["--samples", "9"], "--samples and --caption-tokens are for one's own pictures"),
        (["--profile", "paper", "--samples", "1"], "--samples is 1"),
        (["--profile", "paper", "--caption-tokens", "301"], "--caption-tokens is 301"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"plan: {complaint}")
    assert error.count("\n") == 1


def test_a_picture_size_that_the_autoencoder_cannot_take_is_named() -> None:
    params = params_of(shard__image_size=36)
    with pytest.raises(UserError, match=r"image_size is 36: .* multiple of 8"):
        open_experiment(params, measure_scale(params), 1)


FURTHER_SETS = {
    "data__sets": {
        "sft": {"scene_tasks": ["position"], "train_samples": 300, "heldout_samples": 40},
        "own": {"source": "webdataset", "path": "not-there", "samples_per_shard": 1000},
    },
    "sft__models": ["small", "finetuned-2"],
    "sft__data": "encoded-sft",
}


def test_a_data_set_and_the_models_that_learn_from_it_are_counted_at_the_size_of_that_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of("smoke", **FURTHER_SETS)
    rows = {cost.stage: cost for cost in make_plan(params, Settings(), "test").costs}
    plain = {cost.stage: cost for cost in make_plan(params_of("smoke"), Settings(), "test").costs}
    added = {
        "shard@sft",
        "encode@sft",
        "sft@small",
        "sft@finetuned-2",
        "evaluate@sft-small",
        "evaluate@sft-finetuned-2",
    }
    assert rows.keys() - plain.keys() == added and all(rows[name] == plain[name] for name in plain)
    write_scenes(tmp_path, params.shard_of("sft"), params.compute.seed, "sft")
    written = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert rows["shard@sft"].outputs == pytest.approx(written, rel=0.03)
    samples = 340 / (params.shard.train_samples + params.shard.heldout_samples)
    assert rows["encode@sft"].flops == pytest.approx(samples * rows["encode"].flops, rel=0.02)
    # both fine-tunes have 16 steps of 16 samples; only the held-out losses differ, in their number and their samples
    chosen, short = params.sft, plain["finetune@2"]
    experiment = open_experiment(params, measure_scale(params), gpus=1)
    per_sample = experiment.heldout_flops(2) / experiment.scale.heldout_samples
    fewer = evaluations(chosen) * (params.shard.heldout_samples - 40) * per_sample
    assert rows["sft@finetuned-2"].flops == pytest.approx(short.flops - fewer, rel=0.02)


def test_a_further_set_that_cannot_be_counted_is_taken_for_the_published_one() -> None:
    chosen = FURTHER_SETS | {"sft__data": "encoded-own"}
    plan = make_plan(params_of("smoke", **chosen), Settings(), "test")
    (note,) = [note for note in plan.notes if note.startswith("Data set own:")]
    assert "144,099 training samples and 192 held out" in note
    assert not [note for note in plan.notes if note.startswith("Data set sft:")]


def test_further_captions_of_a_sample_cost_their_encodings() -> None:
    own = {"shard__source": "sana", "shard__path": "not-there", "evaluation__scorer": "matching"}
    one, three = (
        make_plan(params_of("smoke", **own, shard__captions_per_sample=kept), Settings(samples=10_000), "test").costs
        for kept in (1, 3)
    )
    (one,), (three,) = ([cost for cost in costs if cost.stage == "encode"] for costs in (one, three))
    assert three.flops > one.flops
    texts = 10_000 * 2 * 16 * 32 * 2  # two further captions of 16 tokens and 32 channels in float16
    assert three.outputs - one.outputs > texts
