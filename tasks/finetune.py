"""Stage `finetune@D`: trains the model cut to D blocks briefly, to win back what the cut lost.

With `finetune.teacher` it learns from the uncut model, which `tasks.training.teacher` describes.
"""

import torch

from model.checkpoint import load_network
from tasks.data.stage_models import loading_models
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import read_json
from tasks.training.teacher import Teacher, taught_blocks
from tasks.training.training_loop import Trainer


def run(context: Context, depth: int) -> Metrics:
    """Fine-tune the network that stage `prune@D` has cut to `depth` blocks."""
    chosen, pruned = context.params.finetune, paths.model_folder(f"pruned-{depth}")
    return Trainer(context, pruned, paths.OUTPUTS / chosen.data, chosen, teacher_of(context, depth)).run()


def teacher_of(context: Context, depth: int) -> Teacher | None:
    """The grown model as the teacher of the model cut to `depth` blocks, or None for training on the data alone."""
    chosen = context.params.finetune
    if chosen.teacher == "none":
        return None
    with loading_models():
        grown = load_network(paths.GROWN, context.device).to(getattr(torch, chosen.weights))
    kept = read_json(paths.model_folder(f"pruned-{depth}") / "pruning.json")["kept"]
    return Teacher(grown, taught_blocks(kept, grown.config.depth) if chosen.teacher == "features" else ())


if __name__ == "__main__":
    stage_command("finetune", __doc__)
