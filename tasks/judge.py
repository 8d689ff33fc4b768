"""Stage `judge`: trains the judge of best of N on pictures of the small model, labelled by GenEval's scorer.

The pictures are of prompts that the evaluation does not use, wherever a task has others, and of combinations seen in
training. How well the judge tells right from wrong is measured on pictures of combinations that it has not met.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from tasks import layout
from tasks.data.vocabulary import TASKS, combination, is_held_out, lines
from tasks.files import write_csv
from tasks.geneval.judge import JudgeConfig, JudgeNetwork, log_yes, save_judge
from tasks.geneval.judge_training import LabelledPictures, area_under_curve, label, train_judge
from tasks.geneval.pictures import DRAWING_SECTIONS, Painter, load_painter
from tasks.geneval.prompts import Prompt, evaluation_prompts, judge_prompts
from tasks.geneval.scene_detector import SceneDetector
from tasks.params import Params
from tasks.seeds import derive, numpy_generator
from tasks.stage import Context, Metrics, Stage, run_main

UNSEEN_SHARE = 4
"""One prompt of an unseen combination is drawn for every so many training prompts."""


def run(context: Context) -> Metrics:
    """Draw, label, train, measure; writes the judge, `history.csv` and the metrics."""
    params, seed = context.params, context.params.compute.seed
    evaluation = evaluation_prompts(seed, params.geneval.prompts_per_task)
    prompts = judge_prompts(seed, params.judge.prompts, evaluation)
    unseen = unseen_prompts(seed, max(len(prompts) // UNSEEN_SHARE, 1), evaluation)
    painter = load_painter(layout.SMALL, params, context.device)
    data = draw_and_label(painter, prompts, params.judge.images_per_prompt, derive(seed, "judge"), "judge pictures")
    test = draw_and_label(painter, unseen, params.judge.images_per_prompt, derive(seed, "judge test"), "judge test")

    torch.manual_seed(derive(seed, "judge weights"))
    judge = JudgeNetwork(JudgeConfig(painter.text_encoder.channels)).to(context.device).eval()
    untrained = scores(judge, painter, unseen, test)
    texts = painter.text_encoder.encode([prompt.text for prompt in prompts])
    history = train_judge(judge, data, prompts, texts, params.judge, seed, params.compute.dtype)
    for row in history:
        context.tracker.log_metrics({"loss": row["loss"]}, step=int(row["step"]))
    write_csv(context.out / "history.csv", history)
    save_judge(judge, context.out)
    samples = params.geneval.bootstrap_samples
    quality = measure(scores(judge, painter, unseen, test), test, samples, numpy_generator(seed, "judge bootstrap"))
    control = measure(untrained, test, samples, numpy_generator(seed, "judge bootstrap"))
    return {
        **quality,
        **{f"untrained_{name}": value for name, value in control.items()},
        "yes_share": float(data.own_yes().mean()),
        "unseen_yes_share": float(test.own_yes().mean()),
    }


def unseen_prompts(seed: int, count: int, evaluation: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` prompts of combinations that neither judge nor small model met in training, tasks taking turns.

    Those of the evaluation are left out too, but for tasks of which that leaves nothing.
    """
    taken = {combination(prompt.line) for prompt in evaluation}
    queues = []
    for tag in TASKS:
        held_out = [line for line in lines(tag) if is_held_out(line)]
        free = [line for line in held_out if combination(line) not in taken] or held_out
        order = numpy_generator(seed, "unseen prompts", tag).permutation(len(free))
        queues.append([free[i] for i in order])
    turns = chain.from_iterable(zip_longest(*queues))
    return [Prompt(line, seen=False) for line in turns if line is not None][:count]


def draw_and_label(
    painter: Painter, prompts: Sequence[Prompt], images_per_prompt: int, seed: int, name: str
) -> LabelledPictures:
    """Pictures of the prompts, labelled by the scorer for all of them."""
    pictures_PNHW3 = painter.draw([prompt.text for prompt in prompts], images_per_prompt, seed, name)
    pictures = pictures_PNHW3.reshape(-1, *pictures_PNHW3.shape[2:])
    own = np.repeat(np.arange(len(prompts)), images_per_prompt)
    return LabelledPictures(pictures, own, label(pictures, [prompt.line for prompt in prompts], SceneDetector()))


def scores(
    judge: JudgeNetwork, painter: Painter, prompts: Sequence[Prompt], data: LabelledPictures
) -> NDArray[np.float64]:
    """The judge's scores (P, N) of each prompt's own pictures."""
    pictures_PNHW3 = data.pictures_QHW3.reshape(len(prompts), -1, *data.pictures_QHW3.shape[1:])
    return log_yes(judge, painter.text_encoder, pictures_PNHW3, [prompt.text for prompt in prompts])


def measure(
    scores_PN: NDArray[np.float64], data: LabelledPictures, samples: int, rng: np.random.Generator
) -> dict[str, float]:
    """Area under the curve with its 95 % bootstrap interval over prompts, and within prompts (mean of those with both).

    What is undefined, because all pictures are right or all wrong, is left out.
    """
    yes_PN = data.own_yes().reshape(scores_PN.shape)
    drawn = rng.integers(len(yes_PN), size=(samples, len(yes_PN)))
    low, high = _percentiles([area_under_curve(scores_PN[rows], yes_PN[rows]) for rows in drawn], (2.5, 97.5))
    within = [area_under_curve(*row) for row in zip(scores_PN, yes_PN, strict=True) if 0 < row[1].sum() < len(row[1])]
    values = {
        "auc": area_under_curve(scores_PN, yes_PN),
        "auc_low": low,
        "auc_high": high,
        "auc_within_prompts": float(np.mean(within)) if within else np.nan,
    }
    return {name: value for name, value in values.items() if not np.isnan(value)}


def _percentiles(values: Sequence[float], percents: tuple[float, float]) -> tuple[float, float]:
    """Percentiles of the values that are defined; NaN where none is."""
    defined = [value for value in values if not np.isnan(value)] or [np.nan]
    low, high = np.percentile(defined, percents)
    return float(low), float(high)


def stage(_params: Params) -> Stage:
    """The stage's record."""
    return Stage(
        name="judge",
        run=run,
        inputs=(layout.SMALL, layout.AUTOENCODER, layout.TEXT_ENCODER),
        out=layout.JUDGE,
        sections=(
            *DRAWING_SECTIONS,
            "compute.threads",
            "judge",
            "geneval.prompts_per_task",
            "geneval.bootstrap_samples",
        ),
    )


if __name__ == "__main__":
    run_main(stage, "judge", __doc__)
