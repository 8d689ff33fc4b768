"""What pictures and scores take while networks train: a share of each training's operations, said in a note.

The plan's rows leave them out, as outputs do not depend on them.
"""

from collections.abc import Sequence

from model import network_flops
from tasks.evaluation.short_evaluation import PROMPTS
from tasks.params.training_params import Training
from tasks.planning.cost_row import Cost
from tasks.planning.planned_experiment import Experiment
from tasks.planning.stage_costs import depth_of
from tasks.stages import Stage, stages_of
from tasks.training.preview import PICTURES


def drawing_note(experiment: Experiment, costs: Sequence[Cost]) -> list[str]:
    """The note on the share of each training, or none if nothing is drawn. Sharded parameters draw nothing."""
    stages, trainings = stages_of(experiment.params), experiment.params.trainings
    trained = [(cost, stages[cost.stage]) for cost in costs if stages[cost.stage].stem in trainings and cost.flops]
    shares = {cost.stage: drawing_flops(experiment, stage) / cost.flops for cost, stage in trained}
    if experiment.sharded or not any(shares.values()):
        return []
    said = ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    return [
        "Pictures and scores while a network trains (preview_every, score_every) are not in the rows, and take at most "
        f"this share of its operations more: {said}. The passes of a detector are not counted. On several GPUs one "
        "draws the pictures and all draw for the scores."
    ]


def drawing_flops(experiment: Experiment, stage: Stage) -> int:
    """Operations of all sheets of pictures and all scores of a stage that trains."""
    chosen: Training = getattr(experiment.params, stage.stem)
    depth = _depth(experiment, stage)
    sheets, scores = (chosen.steps // every if every else 0 for every in (chosen.preview_every, chosen.score_every))
    total = sheets * _sheet_flops(experiment, depth) if sheets else 0
    return total + (scores * score_flops(experiment, depth) if scores else 0)


def score_flops(experiment: Experiment, depth: int) -> int:
    """Operations of one score, as if the text encoder read the texts anew each time, which it does once."""
    prompts = min(PROMPTS, experiment.scale.evaluation_prompts)
    return experiment.drawing_flops(depth, prompts, 1) + experiment.scoring_flops(prompts, 1)


def _sheet_flops(experiment: Experiment, depth: int) -> int:
    """Operations of one sheet, whose texts the cache has."""
    config, sampling, text = experiment.config(depth), experiment.params.sampling, experiment.text_tokens
    picture = network_flops.sampling_flops(config, experiment.tokens, text, sampling.steps, sampling.guidance)
    read = network_flops.text_flops(config, text)
    return PICTURES * (picture + 2 * read + experiment.encoder_runs.decoder_flops)  # the empty prompt is no longer


def _depth(experiment: Experiment, stage: Stage) -> int:
    """The blocks of the network that a stage trains."""
    if stage.stem == "sft":
        return depth_of(experiment, str(stage.item))
    if stage.item is not None:
        return int(stage.item)
    return depth_of(experiment, {"pretrain": "small", "train": "grown"}[stage.stem])
