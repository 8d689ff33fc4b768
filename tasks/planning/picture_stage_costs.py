"""Costs of the stages that draw, judge and score pictures."""

from math import ceil
from statistics import mean

from tasks.evaluation.evaluation_steps import SAMPLES
from tasks.evaluation.picture_pool import pool_size
from tasks.planning import disk_bytes
from tasks.planning.cost_row import Cost, Memory
from tasks.planning.data_stage_costs import ADAMW_STATE
from tasks.planning.encoder_models import bytes_of, parameters_of
from tasks.planning.encoder_runs import TrainingStep
from tasks.planning.parameter_shapes import parameters
from tasks.planning.planned_experiment import Experiment
from tasks.planning.training_memory import weight_bytes


def judge(experiment: Experiment) -> Cost:
    """Drawing pictures with the small model, training the judge on them, testing it before and after, and calibrating.

    A vision-language judge is not trained, and its own passes and weights are not counted.
    """
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    depth, chosen, network = params.pretrain.depth, params.judge, experiment.encoders.judge
    images, calibrated = chosen.images_per_prompt, min(chosen.calibration_prompts, scale.judge_prompts)
    drawn = [(scale.unseen_prompts, images), (calibrated, chosen.calibration_images)]
    flops = sum(experiment.judging_flops(*pictures) for pictures in drawn)
    flops += experiment.scoring_flops(scale.unseen_prompts, images)
    scores = 8 * calibrated * (chosen.calibration_images + 1)
    if chosen.kind == "vision_language":
        flops += sum(experiment.drawing_flops(depth, *pictures) for pictures in drawn)
        activations = max(experiment.drawing_peak(depth, *pictures) for pictures in drawn)
        return Cost(
            "judge", memory=Memory(_painter(experiment, depth), activations=activations), flops=flops, outputs=scores
        )
    drawn.append((scale.judge_prompts, images))
    flops += sum(experiment.drawing_flops(depth, *pictures) for pictures in drawn)
    flops += experiment.judging_flops(scale.unseen_prompts, images)  # untrained
    if params.scorer == "matching":
        real = min(chosen.shard_pictures, scale.train_samples // 2)  # the other half is the scorer's
        step = training_on_pairs(experiment, min(chosen.batch_size, scale.judge_prompts * images + real))
    else:
        step = runs.judge_training(scale.judge_prompts, scale.prompt_tokens)
        flops += scale.judge_prompts * runs.text_flops(scale.prompt_tokens)
    flops += chosen.steps * step.flops
    trained = bytes_of(network)
    activations = max(
        *(experiment.drawing_peak(depth, *pictures) for pictures in drawn),
        step.saved_bytes,
        runs.judge_peak(max(images, chosen.calibration_images)),
    )
    memory = Memory(
        trained + _painter(experiment, depth),
        gradients=trained,
        optimizer=ADAMW_STATE * trained,
        activations=activations,
    )
    return Cost("judge", parameters_of(network), memory, flops, outputs=trained + scores)


def evaluate(experiment: Experiment, model: str, depth: int) -> Cost:
    """Drawing a model's pool, judging it for its own prompts and, if asked for, for other prompts, and keeping it.

    The first picture of each prompt is encoded, by which the distance to real pictures is measured.
    """
    scale, runs, images = experiment.scale, experiment.encoder_runs, pool_size(experiment.params, model)
    prompts, size = scale.evaluation_prompts, experiment.params.shard.image_size
    judgements = 2 if experiment.params.evaluation.shuffled_control else 1
    flops = experiment.drawing_flops(depth, prompts, images) + judgements * experiment.judging_flops(prompts, images)
    flops += experiment.scoring_flops(prompts, images) + prompts * runs.encoder_flops
    activations, weights = experiment.drawing_peak(depth, prompts, images), _painter(experiment, depth)
    if experiment.params.judge.kind == "trained":
        activations = max(activations, runs.judge_peak(images))
        weights += bytes_of(experiment.encoders.judge)
    samples = prompts * min(SAMPLES, images) * round(mean(scale.png_bytes))
    return Cost(
        f"evaluate@{model}",
        parameters(experiment.config(depth)),
        Memory(weights, activations=activations),
        flops,
        outputs=disk_bytes.pool_bytes(prompts, images, size) + samples,
    )


def controls(experiment: Experiment) -> Cost:
    """Drawing the controls: decoded noise, an untrained network, and cuts to random blocks."""
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    depth, depths, images = params.grow.depth, params.prune.depths, params.evaluation.images_per_pruned_prompt
    pictures = scale.evaluation_prompts * images
    choices = params.prune.random_choices
    drawn = [experiment.drawing_flops(depth, scale.evaluation_prompts, images)]
    share = ceil(images / choices)
    drawn += [choices * experiment.drawing_flops(each, scale.evaluation_prompts, share) for each in depths]
    scored = 2 * experiment.scoring_flops(scale.evaluation_prompts, images)  # noise and the untrained network's
    scored += len(depths) * choices * experiment.scoring_flops(scale.evaluation_prompts, share)
    activations = max(experiment.drawing_peak(depth, scale.evaluation_prompts, images), runs.decoder_peak(pictures))
    # beside the painter's grown model: an untrained one of its size, and the largest cut
    networks = weight_bytes(experiment.config(depth)) + weight_bytes(experiment.config(max(depths)))
    return Cost(
        "controls",
        parameters(experiment.config(depth)),
        Memory(_painter(experiment, depth) + networks, activations=activations),
        pictures * runs.decoder_flops + sum(drawn) + scored,
        outputs=len(depths) * scale.evaluation_prompts * choices * share,
    )


def training_on_pairs(experiment: Experiment, pairs: int) -> TrainingStep:
    """A step on so many pairs, their captions' encoding included. A caption that repeats counts each time."""
    text = experiment.scale.prompt_tokens
    step = experiment.encoder_runs.pair_training(pairs, text)
    read = 2 * pairs * experiment.encoder_runs.text_flops(text)
    return TrainingStep(step.flops + read, step.saved_bytes)


def _painter(experiment: Experiment, depth: int) -> int:
    """The bytes of the weights of a network, with autoencoder and text encoder."""
    frozen = experiment.encoders
    return weight_bytes(experiment.config(depth)) + bytes_of(frozen.autoencoder.network) + bytes_of(frozen.text_encoder)
