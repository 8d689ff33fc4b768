"""Stage `finetune@D`: the short fine-tune that wins back what cutting the grown model to D blocks lost."""

from model.checkpoint import load_network
from tasks import layout
from tasks.context import Context, Metrics
from tasks.params import Params
from tasks.stage import RANK_SECTIONS, TRAINING_SECTIONS, Stage, run_depth_main
from tasks.training.loop import Trainer


def stage(_params: Params, depth: int) -> Stage:
    """The stage's record for one depth."""

    def finetune(context: Context) -> Metrics:
        network = load_network(layout.model_folder(f"pruned-{depth}"))
        return Trainer(context, network, layout.ENCODED, context.params.finetune).run()

    return Stage(
        name=f"finetune@{depth}",
        run=finetune,
        inputs=(layout.model_folder(f"pruned-{depth}"), layout.ENCODED),
        out=layout.model_folder(f"finetuned-{depth}"),
        sections=(*TRAINING_SECTIONS, *RANK_SECTIONS, "compute.branch_threads", "finetune"),
        branch=True,
        parallel=True,
    )


if __name__ == "__main__":
    run_depth_main(stage, "finetune", __doc__)
