"""The costs of all stages, in the order of the table of stages."""

from collections.abc import Callable

from tasks.planning import data_stage_costs as data
from tasks.planning import network_stage_costs as network
from tasks.planning import picture_stage_costs as pictures
from tasks.planning import scorer_stage_costs as scorers
from tasks.planning.cost_row import Cost
from tasks.planning.planned_experiment import Experiment
from tasks.stages import Stage, stages_of


def stage_costs(experiment: Experiment) -> list[Cost]:
    """One row for each stage. A stage without a formula in `COSTS` has a row of zeros."""
    stages = stages_of(experiment.params).values()
    return [COSTS[stage.stem](experiment, stage) if stage.stem in COSTS else Cost(stage.name) for stage in stages]


def depth_of(experiment: Experiment, model: str) -> int:
    """The blocks of a model by its name: `small`, `grown`, or one that is cut, such as `finetuned-6`."""
    depths = {"small": experiment.params.pretrain.depth, "grown": experiment.params.grow.depth}
    return depths[model] if model in depths else int(model.rpartition("-")[2])


def _pretrain(experiment: Experiment, stage: Stage) -> Cost:
    chosen = experiment.params.pretrain
    return network.training(experiment, stage.name, chosen.depth, chosen)


def _train(experiment: Experiment, stage: Stage) -> Cost:
    return network.training(experiment, stage.name, experiment.params.grow.depth, experiment.params.train)


def _finetune(experiment: Experiment, stage: Stage) -> Cost:
    return network.training(experiment, stage.name, int(stage.arguments[0]), experiment.params.finetune)


def _evaluate(experiment: Experiment, stage: Stage) -> Cost:
    model = str(stage.item)
    return pictures.evaluate(experiment, model, depth_of(experiment, model))


COSTS: dict[str, Callable[[Experiment, Stage], Cost]] = {
    "shard": lambda experiment, _: data.shard(experiment),
    "autoencoder": lambda experiment, _: data.autoencoder(experiment),
    "text_encoder": lambda experiment, _: data.text_encoder(experiment),
    "encode": lambda experiment, _: data.encode(experiment),
    "pretrain": _pretrain,
    "scorer": lambda experiment, _: scorers.scorer(experiment),
    "latency": lambda experiment, _: scorers.latency(experiment),
    "judge": lambda experiment, _: pictures.judge(experiment),
    "grow": lambda experiment, _: network.grow(experiment),
    "train": _train,
    "evaluate": _evaluate,
    "controls": lambda experiment, _: pictures.controls(experiment),
    "importance": lambda experiment, _: network.importance(experiment),
    "prune": lambda experiment, stage: network.prune(experiment, int(stage.arguments[0])),
    "finetune": _finetune,
}
"""The function that counts a stage's costs, by the stage's stem."""
