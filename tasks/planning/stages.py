"""The costs of all stages, in the order in which the flow submits them."""

from tasks.planning import data_stages as data
from tasks.planning import network_stages as network
from tasks.planning import picture_stages as pictures
from tasks.planning.cost import Cost
from tasks.planning.experiment import Experiment


def stage_costs(experiment: Experiment) -> list[Cost]:
    """One row for each stage of the graph."""
    params = experiment.params
    small, grown = params.pretrain.depth, params.grow.depth
    depths = {"small": small, "grown": grown}
    costs = [
        data.shard(experiment),
        data.autoencoder(experiment),
        data.text_encoder(experiment),
        data.encode(experiment),
        network.training(experiment, "pretrain", small, params.pretrain),
        pictures.judge(experiment),
        network.grow(experiment),
        network.training(experiment, "train", grown, params.train),
        *(pictures.geneval(experiment, name, depths[name]) for name in params.workflow.baselines),
        pictures.controls(experiment),
        network.importance(experiment),
    ]
    for depth in params.prune.depths:
        costs += [
            network.prune(experiment, depth),
            network.training(experiment, f"finetune@{depth}", depth, params.finetune),
            pictures.geneval(experiment, f"pruned-{depth}", depth),
            pictures.geneval(experiment, f"finetuned-{depth}", depth),
        ]
    return [*costs, Cost("report")]
