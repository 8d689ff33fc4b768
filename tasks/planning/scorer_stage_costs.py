"""Costs of the stages that make the scorer ready and that time a picture."""

from math import prod

from tasks.evaluation.picture_features import BATCH
from tasks.evaluation.picture_timing import PICTURES, ROUNDS, depths_of
from tasks.evaluation.scorers.scorer_choice import REAL_PICTURES
from tasks.planning.cost_row import Cost, Memory
from tasks.planning.data_stage_costs import trained_memory
from tasks.planning.encoder_models import bytes_of, parameters_of
from tasks.planning.parameter_shapes import parameters
from tasks.planning.picture_stage_costs import training_on_pairs
from tasks.planning.planned_experiment import Experiment
from tasks.planning.training_memory import weight_bytes

FLOAT_BYTES = 4


def scorer(experiment: Experiment) -> Cost:
    """The features of real pictures and, with the scorer matching, its network's training and its two bounds.

    Features of a CLIP or DINO are counted as the autoencoder's latents.
    """
    scale, runs, encoders = experiment.scale, experiment.encoder_runs, experiment.encoders
    real = min(REAL_PICTURES, scale.heldout_samples)
    flops, outputs = real * runs.encoder_flops, real * prod(experiment.network_runs.latent) * FLOAT_BYTES
    weights, activations = bytes_of(encoders.autoencoder.network), runs.encoder_peak(min(BATCH, real))
    if experiment.params.scorer != "matching":
        return Cost("scorer", memory=Memory(weights, activations=activations), flops=flops, outputs=outputs)
    chosen, network = experiment.params.matching, encoders.judge
    pairs = min(chosen.batch_size, chosen.pairs, max(1, scale.train_samples // 2))  # the other half is the judge's
    step = training_on_pairs(experiment, pairs)
    flops += chosen.steps * step.flops + 2 * experiment.scoring_flops(scale.evaluation_prompts, 1)
    activations = max(activations, step.saved_bytes, runs.text_peak(2 * pairs, scale.prompt_tokens))
    trained = trained_memory(bytes_of(network), activations)
    memory = Memory(
        trained.weights + weights + bytes_of(encoders.text_encoder),
        gradients=trained.gradients,
        optimizer=trained.optimizer,
        activations=activations,
    )
    return Cost("scorer", parameters_of(network), memory, flops, outputs=outputs + bytes_of(network))


def latency(experiment: Experiment) -> Cost:
    """Drawing one batch by networks of every depth in turn. The networks share the deepest one's blocks."""
    depths, encoders = depths_of(experiment.params), experiment.encoders
    drawn = sum(experiment.drawing_flops(depth, 1, PICTURES) for depth in depths)
    small, deepest = (experiment.config(depth) for depth in (experiment.params.pretrain.depth, depths[-1]))
    weights = weight_bytes(small) + weight_bytes(deepest)
    weights += bytes_of(encoders.autoencoder.network) + bytes_of(encoders.text_encoder)
    memory = Memory(weights, activations=experiment.drawing_peak(depths[-1], 1, PICTURES))
    return Cost("latency", parameters(deepest), memory, (ROUNDS + 1) * drawn)
