"""Costs of the stages that make shards, encoders and cached encodings."""

from statistics import mean

from tasks.planning import disk_bytes
from tasks.planning.cost_row import Cost, Memory
from tasks.planning.encoder_models import bytes_of, parameters_of
from tasks.planning.planned_experiment import Experiment
from tasks.training.autoencoder_loss import EVALUATION_BATCH, SCALE_SAMPLES, SHOWN_PICTURES

ADAMW_STATE = 2  # values that AdamW, which trains encoders and judge, keeps for each weight


def shard(experiment: Experiment, stage: str = "shard") -> Cost:
    """Writing pictures and captions to shards."""
    size, scale = experiment.params.shard.image_size, experiment.scale
    pictures = mean(disk_bytes.member_bytes(png) for png in scale.png_bytes)
    sample = pictures + mean(disk_bytes.record_bytes(size, text) for text in scale.captions.texts)
    return Cost(stage, outputs=_splits(experiment, sample, experiment.params.shard.samples_per_shard))


def autoencoder(experiment: Experiment) -> Cost:
    """Training the autoencoder or taking over a folder, and reconstructing the held-out pictures."""
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    network = experiment.encoders.autoencoder.network
    weights, reconstruction = bytes_of(network), runs.encoder_flops + runs.decoder_flops
    flops = (scale.heldout_samples + min(SHOWN_PICTURES, scale.heldout_samples)) * reconstruction
    batch = min(EVALUATION_BATCH, scale.heldout_samples)
    activations = max(runs.encoder_peak(batch), runs.decoder_peak(batch))
    memory = Memory(weights, activations=activations)
    if params.autoencoder.path is None:
        step = runs.autoencoder_training()
        flops += scale.heldout_samples * reconstruction  # before training
        flops += min(SCALE_SAMPLES, scale.train_samples) * runs.encoder_flops
        flops += params.autoencoder.steps * step.flops
        memory = trained_memory(weights, max(activations, step.saved_bytes))
    return Cost("autoencoder", parameters_of(network), memory, flops, outputs=weights)


def text_encoder(experiment: Experiment) -> Cost:
    """Training the text encoder or taking over a folder, and its perplexity on the held-out captions."""
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    model = experiment.encoders.text_encoder
    text = experiment.text_tokens + runs.instruction_tokens  # it stands before each caption
    ended = text + 1
    weights = bytes_of(model)
    flops = scale.heldout_samples * runs.perplexity_flops(ended)
    activations = runs.perplexity_peak(min(params.text_encoder.batch_size, scale.heldout_samples), ended)
    memory = Memory(weights, activations=activations)
    if params.text_encoder.path is None:
        step = runs.text_encoder_training(text)
        flops = 2 * flops + params.text_encoder.steps * step.flops
        memory = trained_memory(weights + bytes_of(runs.look_back_head), max(activations, step.saved_bytes))
    return Cost("text_encoder", parameters_of(model), memory, flops, outputs=weights)


def encode(experiment: Experiment, stage: str = "encode") -> Cost:
    """Encoding every sample. Captions that repeat in a batch are encoded once, but are counted each time.

    If several captions of a picture are kept, every picture is taken to have as many.
    """
    params, scale, runs = experiment.params, experiment.scale, experiment.encoder_runs
    frozen, text, kept = experiment.encoders, experiment.text_tokens, params.shard.captions_per_sample
    batch = min(params.encode.batch_size, scale.train_samples)
    activations = max(runs.encoder_peak(batch), runs.text_peak(kept * batch, text))
    weights = bytes_of(frozen.autoencoder.network) + bytes_of(frozen.text_encoder)
    samples = scale.train_samples + scale.heldout_samples
    flops = samples * (runs.encoder_flops + kept * runs.text_flops(text)) + runs.null_flops
    captions = zip(scale.captions.texts, scale.captions.tokens, strict=True)
    size, latent, channels = params.shard.image_size, experiment.network_runs.latent, frozen.caption_channels
    sample = mean(
        disk_bytes.encoded_sample_bytes(size, latent, words, kept * tokens, channels) for words, tokens in captions
    )
    if kept > 1:
        sample += disk_bytes.caption_weights_bytes(kept)
    outputs = _splits(experiment, sample, params.encode.samples_per_shard)
    return Cost(stage, memory=Memory(weights, activations=activations), flops=flops, outputs=outputs)


def trained_memory(weights: int, activations: int) -> Memory:
    """The memory of training by AdamW in float32."""
    return Memory(weights, gradients=weights, optimizer=ADAMW_STATE * weights, activations=activations)


def _splits(experiment: Experiment, sample_bytes: float, samples_per_shard: int) -> int:
    counts = experiment.scale.train_samples, experiment.scale.heldout_samples
    return sum(disk_bytes.shards_bytes(count, sample_bytes, samples_per_shard) for count in counts)
