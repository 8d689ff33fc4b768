"""Stage `train`: trains the grown model."""

from tasks.evaluation.short_evaluation import ShortEvaluation
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.training.training_loop import Trainer


def run(context: Context) -> Metrics:
    """Train the network that stage `grow` has initialised."""
    chosen = context.params.train
    scores = ShortEvaluation(context, chosen)
    return Trainer(context, paths.GROWN_INIT, paths.OUTPUTS / chosen.data, chosen, scores=scores).run()


if __name__ == "__main__":
    stage_command("train", __doc__)
