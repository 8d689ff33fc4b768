"""Stage `judge`: trains the judge of best of N.

With the scorer geneval it learns from pictures that the scorer has labelled: the small model's pictures, their mirror
images, and training pictures. The published judge has seen the world before it is fine-tuned; this judge must learn
from training pictures what a well-drawn shape is. The small model draws prompts of combinations that were seen in
training, and that the evaluation does not use if the task has others.

With the scorer matching it learns from the half of the captioned pictures that the scorer does not learn from, and from
pictures that the small model drew for their captions. Each picture's own caption is a yes, and other captions are a no.

With `judge.kind` vision_language nothing is trained: the model in `judge.path` is put on record. For both kinds the
stage measures how well the judge tells right from wrong, on pictures of combinations that were not trained on. It also
writes the judge's scores of new pictures of training prompts, by which adaptive best of N sets its threshold.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from tasks.computing.seeds import derive, numpy_generator
from tasks.evaluation.judges.judge_calibration import Calibration
from tasks.evaluation.judges.judge_choice import Judge, TrainedJudge, open_judge, write_record
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, save_judge
from tasks.evaluation.judges.judge_quality import draw_test, scores
from tasks.evaluation.judges.judge_training import train_judge
from tasks.evaluation.judges.labelled_examples import labelled_examples
from tasks.evaluation.judges.roc_area import measure
from tasks.evaluation.matching.judge_pairs import own_pairs, prompts_of_captions
from tasks.evaluation.matching.pair_training import train_on_pairs
from tasks.evaluation.picture_drawing import Painter, load_painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.evaluation.prompts.judge_prompts import prompts_of_objects
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.evaluation.scorers.scorer_choice import PROMPTS, open_scorer
from tasks.evaluation.scorers.scorer_interface import Scorer
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_csv


def run(context: Context) -> Metrics:
    """Train or record the judge and write `calibration.safetensors`; returns how well the judge does."""
    params, seed = context.params, context.params.compute.seed
    painter = load_painter(paths.SMALL, params, context.device)
    scorer = open_scorer(params, painter.text_encoder, context.device)
    choose_prompts = prompts_of_objects if isinstance(scorer, GenEvalScorer) else prompts_of_captions
    prompts = choose_prompts(params, read_prompts(paths.SCORER / PROMPTS))
    scorer.check([*prompts.training, *prompts.unseen])
    test = draw_test(painter, prompts.unseen, scorer)

    def quality(judge: Judge) -> Metrics:
        rng = numpy_generator(seed, "judge bootstrap")
        return measure(scores(judge, prompts.unseen, test), test.yes_PN, params.evaluation.bootstrap_samples, rng)

    judge, metrics = (
        train(context, painter, prompts.training, scorer, quality)
        if params.judge.kind == "trained"
        else adopt(context, painter)
    )
    calibration(judge, painter, prompts.calibration).save(context.out)
    return {**quality(judge), **metrics, "unseen_yes_share": float(test.yes_PN.mean())}


def adopt(context: Context, painter: Painter) -> tuple[Judge, Metrics]:
    """Put the vision-language model that params.yaml names on record, and open it as the judge."""
    write_record(context.params.judge, context.out)
    return open_judge(context.out, painter.text_encoder, context.params.compute.dtype, context.device), {}


def train(
    context: Context,
    painter: Painter,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    quality: Callable[[Judge], Metrics],
) -> tuple[Judge, Metrics]:
    """Train the small network and write it with its history; returns it, and the `quality` it had before training."""
    params, seed, encoder = context.params, context.params.compute.seed, painter.text_encoder
    dtype, metrics = params.compute.dtype, {}
    teach: Callable[[JudgeNetwork], list[dict[str, float]]]
    if isinstance(scorer, GenEvalScorer):
        examples = labelled_examples(painter, prompts, scorer)
        texts = encoder.encode([prompt.text for prompt in prompts])
        teach = partial(
            train_judge, data=examples, prompts=prompts, texts=texts, training=params.judge, seed=seed, dtype=dtype
        )
        metrics["yes_share"] = float(examples.own_yes().mean())
    else:
        pairs = own_pairs(painter, prompts)
        teach = partial(
            train_on_pairs,
            pairs=pairs,
            text_encoder=encoder,
            training=params.judge,
            seed=seed,
            dtype=dtype,
            section="judge",
        )
    torch.manual_seed(derive(seed, "judge weights"))
    network = JudgeNetwork(JudgeConfig(encoder.channels)).to(context.device).eval()
    judge = TrainedJudge(network, encoder)
    metrics |= {f"untrained_{name}": value for name, value in quality(judge).items()}
    history = teach(network)
    for row in history:
        context.tracker.log_metrics({"loss": row["loss"]}, step=int(row["step"]))
    write_csv(context.out / "history.csv", ("step", "loss"), history)
    save_judge(network, context.out)
    return judge, metrics


def calibration(judge: Judge, painter: Painter, prompts: Sequence[Prompt]) -> Calibration:
    """The judge's scores of pictures of training prompts, which are drawn anew with noise of their own."""
    texts, seed = [prompt.text for prompt in prompts], derive(painter.params.compute.seed, "judge calibration")
    pictures_PNHW3 = painter.draw(texts, painter.params.judge.calibration_images, seed, "judge calibration")
    return Calibration(judge.log_yes(pictures_PNHW3, texts), [prompt.tag for prompt in prompts])


if __name__ == "__main__":
    stage_command("judge", __doc__)
