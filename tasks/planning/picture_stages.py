"""Costs of the stages that draw, judge and score pictures."""

from statistics import mean

from tasks.geneval.__main__ import pool_size
from tasks.geneval.evaluation import SAMPLES
from tasks.planning import disk
from tasks.planning.cost import Cost, Memory
from tasks.planning.data_stages import ADAMW_STATE
from tasks.planning.encoders import bytes_of, parameters_of
from tasks.planning.experiment import Experiment
from tasks.planning.memory import weight_bytes
from tasks.planning.parameters import parameters


def judge(experiment: Experiment) -> Cost:
    """Drawing pictures with the small model, training the judge on them, and testing it before and after."""
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    depth, chosen, network = params.pretrain.depth, params.judge, experiment.encoders.judge
    images, drawn = chosen.images_per_prompt, (scale.judge_prompts, scale.unseen_prompts)
    step = runs.judge_training(scale.judge_prompts, scale.prompt_tokens)
    flops = sum(experiment.drawing_flops(depth, prompts, images) for prompts in drawn)
    flops += scale.judge_prompts * runs.text_flops(scale.prompt_tokens)
    flops += chosen.steps * step.flops + 2 * experiment.judging_flops(scale.unseen_prompts, images)
    trained = bytes_of(network)
    activations = max(
        *(experiment.drawing_peak(depth, prompts, images) for prompts in drawn),
        step.saved_bytes,
        images * runs.judge_peak,
    )
    memory = Memory(
        trained + _painter(experiment, depth),
        gradients=trained,
        optimizer=ADAMW_STATE * trained,
        activations=activations,
    )
    return Cost("judge", parameters_of(network), memory, flops, outputs=trained)


def geneval(experiment: Experiment, model: str, depth: int) -> Cost:
    """Drawing a model's pool, judging it for its own prompts and for others', and keeping it."""
    scale, runs, images = experiment.scale, experiment.encoder_runs, pool_size(experiment.params, model)
    prompts, size = scale.evaluation_prompts, experiment.params.shard.image_size
    flops = experiment.drawing_flops(depth, prompts, images) + 2 * experiment.judging_flops(prompts, images)
    activations = max(experiment.drawing_peak(depth, prompts, images), images * runs.judge_peak)
    weights = _painter(experiment, depth) + bytes_of(experiment.encoders.judge)
    samples = prompts * min(SAMPLES, images) * round(mean(scale.png_bytes))
    return Cost(
        f"geneval@{model}",
        parameters(experiment.config(depth)),
        Memory(weights, activations=activations),
        flops,
        outputs=disk.pool_bytes(prompts, images, size) + samples,
    )


def controls(experiment: Experiment) -> Cost:
    """Decoded noise, an untrained network, and cuts to random blocks; noise is decoded in one batch."""
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    depth, depths, images = params.grow.depth, params.prune.depths, params.geneval.images_per_cut_prompt
    pictures = scale.evaluation_prompts * images
    drawn = [experiment.drawing_flops(each, scale.evaluation_prompts, images) for each in (depth, *depths)]
    activations = max(experiment.drawing_peak(depth, scale.evaluation_prompts, images), pictures * runs.decoder_peak)
    # the grown model, an untrained one and a cut of it
    networks = weight_bytes(experiment.config(depth)) + weight_bytes(experiment.config(max(depths)))
    return Cost(
        "controls",
        parameters(experiment.config(depth)),
        Memory(_painter(experiment, depth) + networks, activations=activations),
        pictures * runs.decoder_flops + sum(drawn),
        outputs=len(depths) * pictures,
    )


def _painter(experiment: Experiment, depth: int) -> int:
    """Weights of a network with autoencoder and text encoder."""
    frozen = experiment.encoders
    return weight_bytes(experiment.config(depth)) + bytes_of(frozen.autoencoder.network) + bytes_of(frozen.text_encoder)
