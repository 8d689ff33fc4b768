"""Stage `finetune@D`: trains the model cut to D blocks briefly, to win back what the cut lost."""

from model.checkpoint import load_network
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.training.training_loop import Trainer


def run(context: Context, depth: int) -> Metrics:
    """Fine-tune the network that stage `prune@D` has cut to `depth` blocks."""
    network = load_network(paths.model_folder(f"pruned-{depth}"))
    return Trainer(context, network, paths.OUTPUTS / context.params.finetune.data, context.params.finetune).run()


if __name__ == "__main__":
    stage_command("finetune", __doc__)
