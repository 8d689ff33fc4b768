"""Stage `judge_examples@M`: model M draws the pictures from which a vision-language judge is fine-tuned.

It exists for the models in `judge_finetune.pictures_of`, of which there are none by default. The prompts are of
GenEval's kind, and leave out every combination that the evaluation asks for. The scorer geneval labels each picture for
its own prompt by detector and rules. Of each task as many right as wrong pictures are chosen for training. Other
prompts, with pictures of their own, are held out to measure the judge on (SANA-1.5 section 2.5 and appendix B).
"""

from tasks.computing.seeds import derive
from tasks.evaluation.judges.example_drawing import write_examples
from tasks.evaluation.judges.example_shards import read_examples
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.prompts.evaluation_prompts import read_prompts
from tasks.evaluation.prompts.judge_prompts import prompts_of_examples
from tasks.evaluation.scorers.scorer_choice import PROMPTS, open_scorer
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths


def run(context: Context, model: str) -> Metrics:
    """Write labelled pictures that the model drew; returns their numbers and the share of right ones."""
    params = context.params
    painter = load_painter(paths.model_folder(model), params, context.device)
    scorer = open_scorer(params, painter.text_encoder, context.device)
    prompts = prompts_of_examples(params, read_prompts(paths.SCORER / PROMPTS))
    scorer.check([*prompts.train, *prompts.heldout])
    images, seed = params.judge_finetune.images_per_prompt, derive(params.compute.seed, "judge examples", model)
    verdicts = write_examples(context.out, painter, scorer, prompts, images, seed)
    return {
        "prompts": len(prompts.train),
        "heldout_prompts": len(prompts.heldout),
        "pictures": verdicts["train"].size,
        "examples": len(read_examples(context.out, "train").balanced),
        "yes_share": float(verdicts["train"].mean()),
        "heldout_yes_share": float(verdicts["heldout"].mean()),
    }


if __name__ == "__main__":
    stage_command("judge_examples", __doc__)
