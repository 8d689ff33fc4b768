"""Stage `train`: trains the grown model."""

from model.checkpoint import load_network
from tasks import layout
from tasks.context import Context, Metrics
from tasks.params import Params
from tasks.stage import RANK_SECTIONS, TRAINING_SECTIONS, Stage, run_main
from tasks.training.loop import Trainer


def train(context: Context) -> Metrics:
    """Train the network that stage `grow` has initialised."""
    network = load_network(layout.GROWN_INIT)
    return Trainer(context, network, layout.ENCODED, context.params.train).run()


def stage(_params: Params) -> Stage:
    """The stage's record."""
    return Stage(
        name="train",
        run=train,
        inputs=(layout.GROWN_INIT, layout.ENCODED),
        out=layout.GROWN,
        sections=(*TRAINING_SECTIONS, *RANK_SECTIONS, "compute.branch_threads", "train"),
        branch=True,
        parallel=True,
    )


if __name__ == "__main__":
    run_main(stage, "train", __doc__)
