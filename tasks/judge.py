"""Stage `judge`: trains the judge of best of N on pictures that GenEval's scorer has labelled.

The judge is trained on the small model's pictures, their mirror images, and training pictures. The published judge has
seen the world before it is fine-tuned; this judge must learn from training pictures what a well-drawn shape is. The
small model draws prompts of combinations that were seen in training, and that the evaluation does not use if the task
has others.

With `judge.kind` vision_language nothing is trained: the model in `judge.path` is put on record. For both kinds the
stage measures how well the judge tells right from wrong, on pictures of combinations that were not trained on. It also
writes the judge's scores of new pictures of training prompts, by which adaptive best of N sets its threshold.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import PictureDataset
from tasks.evaluation.detectors.detector import Detector
from tasks.evaluation.detectors.detector_choice import build_detector, check_classes
from tasks.evaluation.judges.judge_calibration import Calibration
from tasks.evaluation.judges.judge_choice import Judge, TrainedJudge, open_judge, write_record
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, save_judge
from tasks.evaluation.judges.judge_training import LabelledPictures, area_under_curve, label, train_judge
from tasks.evaluation.picture_drawing import Painter, load_painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, chosen_prompts
from tasks.evaluation.prompts.judge_prompts import choose_prompts_to_draw
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_csv


def run(context: Context) -> Metrics:
    """Train or record the judge and write `calibration.safetensors`; returns how well the judge does."""
    params, seed = context.params, context.params.compute.seed
    detector = build_detector(params.geneval, context.device)
    prompts, unseen = choose_prompts_to_draw(params, chosen_prompts(params))
    check_classes((prompt.line for prompt in (*prompts, *unseen)), detector)
    painter = load_painter(paths.SMALL, params, context.device)
    images = params.judge.images_per_prompt
    test = draw_and_label(painter, unseen, images, derive(seed, "judge test"), "judge test", detector)

    def quality(judge: Judge) -> Metrics:
        rng = numpy_generator(seed, "judge bootstrap")
        return measure(scores(judge, unseen, test), test, params.evaluation.bootstrap_samples, rng)

    judge, metrics = (
        train(context, painter, prompts, detector, quality)
        if params.judge.kind == "trained"
        else adopt(context, painter)
    )
    calibration(judge, painter, prompts[: params.judge.calibration_prompts]).save(context.out)
    return {**quality(judge), **metrics, "unseen_yes_share": float(test.own_yes().mean())}


def adopt(context: Context, painter: Painter) -> tuple[Judge, Metrics]:
    """Put the vision-language model that params.yaml names on record, and open it as the judge."""
    write_record(context.params.judge, context.out)
    return open_judge(context.out, painter.text_encoder, context.params.compute.dtype, context.device), {}


def train(
    context: Context,
    painter: Painter,
    prompts: Sequence[Prompt],
    detector: Detector,
    quality: Callable[[Judge], Metrics],
) -> tuple[Judge, Metrics]:
    """Train the small network and write it with its history; returns it, and the `quality` it had before training."""
    params, seed = context.params, context.params.compute.seed
    data = training_pictures(painter, prompts, detector)
    torch.manual_seed(derive(seed, "judge weights"))
    network = JudgeNetwork(JudgeConfig(painter.text_encoder.channels)).to(context.device).eval()
    judge = TrainedJudge(network, painter.text_encoder)
    untrained = quality(judge)
    texts = painter.text_encoder.encode([prompt.text for prompt in prompts])
    history = train_judge(network, data, prompts, texts, params.judge, seed, params.compute.dtype)
    for row in history:
        context.tracker.log_metrics({"loss": row["loss"]}, step=int(row["step"]))
    write_csv(context.out / "history.csv", ("step", "loss"), history)
    save_judge(network, context.out)
    metrics = {f"untrained_{name}": value for name, value in untrained.items()}
    return judge, metrics | {"yes_share": float(data.own_yes().mean())}


def calibration(judge: Judge, painter: Painter, prompts: Sequence[Prompt]) -> Calibration:
    """The judge's scores of pictures of training prompts, which are drawn anew with noise of their own."""
    texts, seed = [prompt.text for prompt in prompts], derive(painter.params.compute.seed, "judge calibration")
    pictures_PNHW3 = painter.draw(texts, painter.params.judge.calibration_images, seed, "judge calibration")
    return Calibration(judge.log_yes(pictures_PNHW3, texts), [prompt.tag for prompt in prompts])


def training_pictures(painter: Painter, prompts: Sequence[Prompt], detector: Detector) -> LabelledPictures:
    """The judge's training pictures: pictures drawn for the prompts, their mirror images, and pictures of the shards.

    A mirror image keeps its prompt, which may now be wrong ("left of"); it is labelled anew. Each picture of the shards
    gets one of the prompts as its own.
    """
    params, seed = painter.params.judge, painter.params.compute.seed
    lines = [prompt.line for prompt in prompts]
    images = params.images_per_prompt
    drawn = draw_and_label(painter, prompts, images, derive(seed, "judge"), "judge pictures", detector)
    mirrored = np.ascontiguousarray(drawn.pictures_QHW3[:, :, ::-1])
    parts = [drawn, LabelledPictures(mirrored, drawn.own_Q, label(mirrored, lines, detector))]
    if params.shard_pictures:
        shown = shard_pictures(params.shard_pictures, painter.params.shard.image_size, seed)
        yes_QL = label(shown, lines, detector)
        own_Q = choose_prompts(yes_QL, numpy_generator(seed, "judge shard prompts"))
        parts.append(LabelledPictures(shown, own_Q, yes_QL))
    return LabelledPictures(*(np.concatenate(arrays) for arrays in zip(*map(astuple, parts), strict=True)))


def shard_pictures(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Up to `count` training pictures (Q, side, side, 3). With aspect buckets, they are of the square bucket.

    Raises UserError if there are none of this size.
    """
    dataset = PictureDataset(paths.SHARDS, "train")
    square = dataset.of_size(side, side)
    if not len(square):
        raise UserError(
            f"{paths.SHARDS} has no pictures of {side}x{side}: set judge.shard_pictures to 0 in params.yaml"
        )
    order = numpy_generator(seed, "judge shard pictures").permutation(len(square))
    return dataset.pictures(np.sort(square[order[:count]]))


def choose_prompts(yes_QL: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """The index (Q,) of a prompt for each picture.

    Every second picture gets a prompt to which the scorer says yes, if there is one. All others get a random prompt.
    """
    chosen = rng.integers(yes_QL.shape[1], size=len(yes_QL))
    for row in range(0, len(yes_QL), 2):
        if yes_QL[row].any():
            chosen[row] = rng.choice(np.flatnonzero(yes_QL[row]))
    return chosen


def draw_and_label(
    painter: Painter, prompts: Sequence[Prompt], images_per_prompt: int, seed: int, name: str, detector: Detector
) -> LabelledPictures:
    """Draw pictures of the prompts; the scorer labels each picture for all prompts."""
    pictures_PNHW3 = painter.draw([prompt.text for prompt in prompts], images_per_prompt, seed, name)
    pictures = pictures_PNHW3.reshape(-1, *pictures_PNHW3.shape[2:])
    own = np.repeat(np.arange(len(prompts)), images_per_prompt)
    return LabelledPictures(pictures, own, label(pictures, [prompt.line for prompt in prompts], detector))


def scores(judge: Judge, prompts: Sequence[Prompt], data: LabelledPictures) -> NDArray[np.float64]:
    """The judge's scores (P, N) of each prompt's own pictures. An abstention counts as the surest no."""
    pictures_PNHW3 = data.pictures_QHW3.reshape(len(prompts), -1, *data.pictures_QHW3.shape[1:])
    return np.nan_to_num(
        judge.log_yes(pictures_PNHW3, [prompt.text for prompt in prompts]), nan=-np.inf, neginf=-np.inf
    )


def measure(
    scores_PN: NDArray[np.float64], data: LabelledPictures, samples: int, rng: np.random.Generator
) -> dict[str, float]:
    """The area under the ROC curve: of all pictures, with its 95 % bootstrap interval, and within prompts.

    The bootstrap draws prompts. The value within prompts is the mean over prompts that have right and wrong pictures. A
    value that is undefined, because all pictures are right or all are wrong, is left out.
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
    """Two percentiles of the values that are defined. NaN if none is."""
    defined = [value for value in values if not np.isnan(value)] or [np.nan]
    low, high = np.percentile(defined, percents)
    return float(low), float(high)


if __name__ == "__main__":
    stage_command("judge", __doc__)
