"""The notes below the plan's table: which figures are assumptions, and what the figures leave out."""

from collections.abc import Sequence

from tasks.planning.cost_row import Cost
from tasks.planning.disk_bytes import pool_bytes
from tasks.planning.drawing_share import drawing_note
from tasks.planning.encoder_models import parameters_of
from tasks.planning.gpu_hours import gpu_hours
from tasks.planning.planned_experiment import Experiment
from tasks.training.generation_writer import KEPT_GENERATIONS

GIGA = 1e9


def notes(experiment: Experiment, costs: Sequence[Cost], teraflops: float, utilisation: float) -> list[str]:
    """The notes of a plan."""
    lines = [
        _time(experiment, sum(cost.flops for cost in costs), teraflops, utilisation),
        "FLOPs are two for each multiplication with its addition in matrix products, convolutions and attention; a "
        "backward pass is two forward passes. Norms, activations and the optimizer are left out. "
        f"{_recomputed(experiment)}",
        _sample(experiment),
        *drawing_note(experiment, costs),
        _memory(experiment),
        *experiment.scale.assumptions,
        *_data_sets(experiment),
        *_stand_ins(experiment),
        _prompts(experiment),
        _disk(experiment),
        *_unknown(experiment),
    ]
    if experiment.gpus > 1:
        lines.append(
            f"{experiment.gpus} GPUs share each step's micro-batches. Each holds {_copies(experiment)} come on top. "
            "Stages other than training and geneval use one GPU."
        )
    return lines


def _copies(experiment: Experiment) -> str:
    if not experiment.sharded:
        return "a whole copy of everything; buckets of gradients on their way (as large as the gradients)"
    kind, shards = experiment.params.compute.parallelism, experiment.shards
    return (
        f"one of {shards} parts of weights, average and optimizer state (compute.parallelism {kind}); of gathered "
        f"weights two blocks at a time, which are counted among the activations{_whole_gradients(experiment)}; "
        "gradients of the block at work, on their way,"
    )


def _whole_gradients(experiment: Experiment) -> str:
    """Where a step has several micro-batches, and all ranks are one group, gradients stay whole until the last."""
    params = experiment.params
    several = [name for name in params.trainings if experiment.passes(getattr(params, name)) > 1]
    if experiment.replicas > 1 or not several:
        return ""
    return f"; whole gradients in float32 over the micro-batches of a step in {', '.join(several)}"


def _time(experiment: Experiment, flops: int, teraflops: float, utilisation: float) -> str:
    hours = gpu_hours(flops, teraflops, utilisation) / experiment.gpus
    duration = f"{hours / 24:,.0f} days" if hours > 48 else f"{hours:.2g} hours" if hours > 1 else "under an hour"
    return (
        f"GPU-hours assume {utilisation:.0%} of {teraflops:g} TFLOP/s in every stage, also where float32 (the "
        "autoencoder) or small batches are slower: divide by what you measure. Work of the CPU (pictures, shards, the "
        "scorer, reading and writing) is not in them. "
        f"All stages: {duration} if {'the GPU is' if experiment.gpus == 1 else 'all GPUs are'} never idle. "
        "The total has sums, but of memory and state the most that any stage takes."
    )


def _recomputed(experiment: Experiment) -> str:
    params = experiment.params
    counts = {name: getattr(params, name).recompute_blocks for name in params.trainings}
    some = [f"{name} {count}" for name, count in counts.items() if count]
    if not some:
        return "No forward pass is computed twice: no section asks for activation checkpointing (recompute_blocks)."
    return (
        "A backward pass computes some blocks once more (recompute_blocks, at most the depth), which is counted: "
        f"{', '.join(some)}."
    )


def _unknown(experiment: Experiment) -> list[str]:
    """Notes on what is left out or guessed, because the model that it depends on is not opened."""
    lines = []
    precision, text_encoder = experiment.params.text_encoder.precision, experiment.encoders.text_encoder
    if precision != "stored" and f"torch.{precision}" != str(text_encoder.dtype):
        lines.append(f"The text encoder is counted in {text_encoder.dtype}, not in text_encoder.precision {precision}.")
    if tokens := experiment.encoder_runs.instruction_tokens:
        lines.append(f"The instruction before a prompt is assumed to have {tokens} tokens, by its number of letters.")
    return lines


def _sample(experiment: Experiment) -> str:
    params = experiment.params
    return (
        f"A training sample is {params.shard.image_size} pixels square: {experiment.tokens} latent tokens and "
        f"{experiment.text_tokens} of text, as every text is padded to the longest of its batch. Latents and texts are "
        "read from the cache, so training runs no encoder. Guidance computes every step twice; a prompt's keys and "
        f"values are computed once for a batch of pictures; prompts are {experiment.scale.prompt_tokens} tokens long "
        "(the longest)."
    )


def _data_sets(experiment: Experiment) -> list[str]:
    """Notes on the sets in `data.sets` that are built."""
    lines = []
    for name in experiment.params.data_sets:
        scale = experiment.of_data_set(name).scale
        lines.append(
            f"Data set {name}: {scale.train_samples:,} training samples and {scale.heldout_samples:,} held out, as if "
            f"no score left a picture out. {' '.join(scale.assumptions)}"
        )
    return lines


def _memory(experiment: Experiment) -> str:
    params = experiment.params
    sizes = ", ".join(f"{name} {experiment.micro_batch(getattr(params, name))}" for name in params.trainings)
    attention = "stores its probabilities" if not experiment.precision.fused_attention else "is fused"
    return (
        f"Memory is of each GPU, at these samples a pass: {sizes}. Activations are what autograd saves, or in passes "
        "without gradients what lives at once, with autocast's copies of weights; attention "
        f"{attention} in training and stores its probabilities elsewhere. Left out are buffers within one operation "
        "and what the allocator and CUDA hold: leave a tenth free."
    )


def _stand_ins(experiment: Experiment) -> list[str]:
    if not experiment.encoders.stand_ins:
        return []
    return [
        f"{' and '.join(experiment.encoders.stand_ins)} of params.yaml are not there yet: the published DC-AE f32c32 "
        "(312 M parameters, in float32) and Gemma-2-2b (2.61 B, in bfloat16) stand in."
    ]


def _prompts(experiment: Experiment) -> str:
    scale = experiment.scale
    return (
        f"Evaluation has {scale.evaluation_prompts} prompts and the judge {scale.judge_prompts:,} to learn from and "
        f"{scale.unseen_prompts} to be tested on: as many of those asked for as there are. "
        f"{_scorer(experiment)} {_judge(experiment)}"
    )


def _scorer(experiment: Experiment) -> str:
    if experiment.params.scorer == "matching":
        return "The scorer matching is a network of this project's own, counted with its training."
    if experiment.params.geneval.detector == "scenes":
        return "The scorer is the scenes' and runs on the CPU."
    return "Not counted is the scorer: the passes and weights of Mask2Former and CLIP, on each picture drawn."


def _judge(experiment: Experiment) -> str:
    if experiment.params.judge.kind == "vision_language":
        return "Not counted are the passes and weights of the vision-language judge, nor its cache of answers."
    millions = parameters_of(experiment.encoders.judge) / 1e6
    return f"The judge's costs are those of this project's own, of {millions:.2f} M parameters."


def _disk(experiment: Experiment) -> str:
    scale, params = experiment.scale, experiment.params
    pool = pool_bytes(scale.evaluation_prompts, params.evaluation.images_per_prompt, params.shard.image_size)
    return (
        "Outputs stay. DVC's cache links to them where the file system can, and takes as much again where it cannot. "
        f"State is what training resumes from ({KEPT_GENERATIONS} generations and the one being written). It is "
        f"deleted when its stage is done. The largest pool of pictures has {pool / GIGA:,.3g} GB, and is mapped into "
        "memory. JSON, logs, reports and the tokenizer are left out: they are megabytes."
    )
