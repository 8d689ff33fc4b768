"""Stage `sft@M`: fine-tunes the finished model M on chosen pairs, such as pictures that a detector finds right.

SANA-1.5 takes its models from a GenEval score of .69 to .72 with pairs whose CLIP score is above 25, and to .81 with
144 thousand pictures of prompts like GenEval's (table 4 and section 3.2). `sft.data` names the data set.
"""

from tasks.evaluation.short_evaluation import ShortEvaluation
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.training.training_loop import Trainer


def run(context: Context, model: str) -> Metrics:
    """Fine-tune the model of this name, such as `grown` or `finetuned-6`."""
    chosen = context.params.sft
    scores = ShortEvaluation(context, chosen)
    return Trainer(context, paths.model_folder(model), paths.OUTPUTS / chosen.data, chosen, scores=scores).run()


if __name__ == "__main__":
    stage_command("sft", __doc__)
