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
    """The blocks of a model by its name: `small`, `grown`, one that is cut (`finetuned-6`), or `sft-` before these."""
    model = model.removeprefix("sft-")
    depths = {"small": experiment.params.pretrain.depth, "grown": experiment.params.grow.depth}
    return depths[model] if model in depths else int(model.rpartition("-")[2])


def _pretrain(experiment: Experiment, stage: Stage) -> Cost:
    chosen = experiment.params.pretrain
    return network.training(experiment.learning_from(chosen.data), stage.name, chosen.depth, chosen)


def _train(experiment: Experiment, stage: Stage) -> Cost:
    chosen = experiment.params.train
    return network.training(experiment.learning_from(chosen.data), stage.name, experiment.params.grow.depth, chosen)


def _finetune(experiment: Experiment, stage: Stage) -> Cost:
    chosen = experiment.params.finetune
    return network.training(experiment.learning_from(chosen.data), stage.name, int(stage.arguments[0]), chosen)


def _sft(experiment: Experiment, stage: Stage) -> Cost:
    chosen, depth = experiment.params.sft, depth_of(experiment, str(stage.item))
    return network.training(experiment.learning_from(chosen.data), stage.name, depth, chosen)


def _data_set(stage: Stage) -> str | None:
    return None if stage.item is None else str(stage.item)


def _evaluate(experiment: Experiment, stage: Stage) -> Cost:
    model = str(stage.item)
    return pictures.evaluate(experiment, model, depth_of(experiment, model))


COSTS: dict[str, Callable[[Experiment, Stage], Cost]] = {
    "shard": lambda experiment, stage: data.shard(experiment.of_data_set(_data_set(stage)), stage.name),
    "autoencoder": lambda experiment, _: data.autoencoder(experiment),
    "text_encoder": lambda experiment, _: data.text_encoder(experiment),
    "encode": lambda experiment, stage: data.encode(experiment.of_data_set(_data_set(stage)), stage.name),
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
    "sft": _sft,
}
"""The function that counts a stage's costs, by the stage's stem."""
