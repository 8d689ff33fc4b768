"""Costs of the stages that train, grow, measure and cut the network."""

from dataclasses import replace

from model import network_flops
from model.growth import drop_count
from model.network import NetworkConfig
from tasks.params.training_params import Training
from tasks.planning import disk_bytes
from tasks.planning.cost_row import Cost, Memory
from tasks.planning.parameter_shapes import parameters
from tasks.planning.planned_experiment import Experiment, evaluations
from tasks.planning.training_memory import (
    Batch,
    backward_bytes,
    gathered_bytes,
    gradient_bytes,
    optimizer_bytes,
    sharded_gradient_bytes,
    weight_bytes,
)
from tasks.training.growth_comparison import PROBES, ways_to_grow
from tasks.training.heldout_loss import heldout_batch_size

RANKED_CUTS = 3  # keeping the most important blocks, the last ones, and the first ones


def training(experiment: Experiment, stage: str, depth: int, chosen: Training) -> Cost:
    """A run of the training loop with its held-out losses. With 0 steps only the held-out loss is taken."""
    config = experiment.config(depth)
    weights, tokens, text = weight_bytes(config, chosen.weights), experiment.tokens, experiment.text_tokens
    shards, state = experiment.shards, optimizer_bytes(chosen.optimizer, config)
    corrections = parameters(config) if chosen.weight_correction else 0  # a byte for each
    gradients = _gradients(experiment, config, chosen)
    averaged, evaluated = weights if chosen.ema_decay else 0, _loss_peak(experiment, depth)
    flops_of_evaluations = evaluations(chosen) * experiment.heldout_flops(depth)
    if not chosen.steps:
        memory = Memory(weights, ema=averaged, activations=evaluated)
        return Cost(stage, parameters(config), memory, flops_of_evaluations, outputs=weights)
    samples = Batch(experiment.micro_batch(chosen), tokens, text)
    recomputed, precision = chosen.recompute_blocks, experiment.precision
    gathered = gathered_bytes(config, precision.dtype) if experiment.sharded else 0
    copies = chosen.weights == "float32" and not experiment.sharded
    saved = backward_bytes(config, samples, precision, recomputed, copies)
    memory = Memory(
        weights // shards,
        ema=averaged // shards,
        gradients=gradients,
        optimizer=(state + corrections) // shards,
        # There are no gradients while a held-out loss is taken.
        activations=gathered + max(saved, evaluated - gradients),
    )
    trained = chosen.steps * chosen.batch_size * network_flops.training_flops(config, tokens, text, recomputed)
    return Cost(
        stage,
        parameters(config),
        memory,
        trained + flops_of_evaluations,
        outputs=weights,
        state=disk_bytes.state_bytes(chosen.optimizer, config, weights + averaged + corrections),
    )


def _gradients(experiment: Experiment, config: NetworkConfig, chosen: Training) -> int:
    if not experiment.sharded:
        return gradient_bytes(config, chosen.weights, chosen.step_in_backward)
    passes = experiment.passes(chosen)
    return sharded_gradient_bytes(config, chosen.weights, experiment.shards, experiment.replicas, passes)


def finetune(experiment: Experiment, stage: str, depth: int) -> Cost:
    """The training of a cut model, with a forward pass of the grown model for each sample if that is its teacher."""
    chosen, grown = experiment.params.finetune, experiment.config(experiment.params.grow.depth)
    cost = training(experiment, stage, depth, chosen)
    if chosen.teacher == "none" or not chosen.steps:
        return cost
    taught = network_flops.forward_flops(grown, experiment.tokens, experiment.text_tokens)
    memory = replace(cost.memory, weights=cost.memory.weights + weight_bytes(grown, chosen.weights))
    return replace(cost, flops=cost.flops + chosen.steps * chosen.batch_size * taught, memory=memory)


def grow(experiment: Experiment) -> Cost:
    """Measuring the start of every strategy, with 0, 1 and the chosen number of blocks dropped, and the small model."""
    params, scale = experiment.params, experiment.scale
    small, grown = experiment.config(params.pretrain.depth), experiment.config(params.grow.depth)
    dropped = drop_count(small.depth, params.grow.drop_share)
    starts = len(ways_to_grow(small.depth, params.grow))
    probes, probe = min(PROBES, scale.heldout_samples), (experiment.tokens, experiment.text_tokens)
    total = experiment.heldout_flops(small.depth) + starts * experiment.heldout_flops(grown.depth)
    total += probes * (network_flops.forward_flops(small, *probe) + starts * network_flops.forward_flops(grown, *probe))
    # while the grown network is built, its new blocks are in memory twice
    new = weight_bytes(grown) - weight_bytes(experiment.config(small.depth - dropped))
    activations = max(new, _loss_peak(experiment, grown.depth))
    memory = Memory(weight_bytes(small) + weight_bytes(grown), activations=activations)
    return Cost("grow", parameters(grown), memory, total, outputs=weight_bytes(grown))


def importance(experiment: Experiment) -> Cost:
    """Block importance of the grown model: a pass for each prompt and noise level. Its text is encoded once."""
    chosen, config = experiment.params.importance, experiment.config(experiment.params.grow.depth)
    passes = len(chosen.times) * network_flops.velocity_flops(config, experiment.tokens, experiment.text_tokens)
    prompts = min(chosen.prompts, experiment.scale.heldout_samples)
    total = prompts * (network_flops.text_flops(config, experiment.text_tokens) + passes)
    batch = min(chosen.batch_size, prompts)
    activations = experiment.network_runs.importance_peak(config.depth, batch, experiment.text_tokens)
    return Cost("importance", parameters(config), Memory(weight_bytes(config), activations=activations), total)


def prune(experiment: Experiment, depth: int) -> Cost:
    """The held-out losses of the grown model and of every choice of blocks, each on a copy."""
    chosen, whole = experiment.params.prune, experiment.params.grow.depth
    cut, grown = experiment.config(depth), weight_bytes(experiment.config(whole))
    cuts = (RANKED_CUTS + chosen.random_choices) * experiment.heldout_flops(depth)
    memory = Memory(2 * grown, activations=_loss_peak(experiment, whole))
    total = experiment.heldout_flops(whole) + cuts
    return Cost(f"prune@{depth}", parameters(cut), memory, total, outputs=weight_bytes(cut))


def _loss_peak(experiment: Experiment, depth: int) -> int:
    batch = heldout_batch_size(experiment.config(depth), experiment.tokens, experiment.text_tokens)
    samples = min(batch, experiment.scale.heldout_samples)
    return experiment.network_runs.loss_peak(depth, samples, experiment.text_tokens)
