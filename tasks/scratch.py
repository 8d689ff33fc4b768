"""Stage `scratch@D`: a network of D blocks trained from random weights, as the control of growth.

SANA-1.5 says that a grown model reaches the quality of one trained from scratch in 60 % fewer steps (figure 2). An
experiment shows or refutes that for itself with `scratch.depths: [8]`, if `grow.depth` is 8: `scratch` trains on the
grown model's data with its optimizer, and the report compares the two.
"""

import torch

from model.network import Sana
from tasks.computing.seeds import derive
from tasks.data.encoded_samples import EncodedDataset
from tasks.evaluation.short_evaluation import ShortEvaluation
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.training.initial_network import initial_network
from tasks.training.network_config import network_config
from tasks.training.training_loop import Trainer


def run(context: Context, depth: int) -> Metrics:
    """Train a network of `depth` blocks, whose initial weights follow from the seed and the stage's name."""
    params, chosen = context.params, context.params.scratch
    folder = paths.OUTPUTS / chosen.data
    encoded = EncodedDataset(folder, "train")
    torch.manual_seed(derive(params.compute.seed, context.name, "initial weights"))
    config = network_config(params.network, depth, encoded.latent_shape[0], encoded.null_text.shape[1])
    with initial_network(context, lambda: Sana(config, params.network.initialisation)) as network:
        trainer = Trainer(context, network, folder, chosen, scores=ShortEvaluation(context, chosen))
    return trainer.run()


if __name__ == "__main__":
    stage_command("scratch", __doc__)
