"""Stage `evaluate@M`: scores the model M by the experiment's scorer, for one picture and for the best of N.

It writes the first four pictures of each prompt in GenEval's own folder layout with `results.jsonl`, so that GenEval's
tools can be run on them. The whole pool is in `pictures.npy`, with all verdicts in `pool.safetensors`. By GenEval's
rules there is `atoms.csv` too, which says what each prompt's pictures fail. The scores are in `summary.json`, with the
distance of the drawn pictures to real held-out ones. Where the params name models for it, the pictures are measured by
CLIP score, Frechet distance and DPG-Bench besides.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tasks.computing import ranks
from tasks.computing.seeds import derive
from tasks.data.published_files import published_path
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.dpg_bench import PICTURES_PER_PROMPT, answer_prompts, read_questions, summarize_answers
from tasks.evaluation.evaluation_steps import all_reasons, judge_pool, score_prompts, write_samples
from tasks.evaluation.evaluation_summary import headline, summarize
from tasks.evaluation.feature_distance import LEAST_PICTURES, distance, mean_interval
from tasks.evaluation.frechet_distance import frechet_distance
from tasks.evaluation.geneval_atoms import summarize_atoms, write_atoms
from tasks.evaluation.inception_features import InceptionFeatures
from tasks.evaluation.judges.judge_choice import Judge, open_judge
from tasks.evaluation.picture_drawing import Painter, load_painter
from tasks.evaluation.picture_features import VisionFeatures, open_features, read_features
from tasks.evaluation.picture_pool import PICTURES, pool_size
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.evaluation.scorers.scorer_choice import PROMPTS, REAL_FEATURES, REAL_INCEPTION, open_scorer
from tasks.params.user_files import own_path
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json

DPG_PICTURES = "dpg_pictures.npy"
"""File of the pictures (P, 4, side, side, 3) of DPG-Bench's prompts, where the params name its questions."""


def run(context: Context, model: str) -> Metrics:
    """Draw the pool of `model`, score and judge it, and write it with its summary; returns the main scores."""
    params, seed = context.params, context.params.compute.seed
    prompts = read_prompts(paths.SCORER / PROMPTS)
    painter = load_painter(paths.model_folder(model), params, context.device)
    scorer = open_scorer(params, painter.text_encoder, context.device)
    pictures_PNHW3 = painter.draw(
        [prompt.text for prompt in prompts],
        pool_size(params, model),
        derive(seed, "geneval"),
        f"evaluate@{model}",
        context.out / PICTURES,
    )
    verdicts = score_prompts(prompts, pictures_PNHW3, scorer)
    judge = open_judge(paths.JUDGE, painter.text_encoder, params.compute.dtype, context.device)
    pool = judge_pool(prompts, pictures_PNHW3, verdicts, judge, seed, params.evaluation.shuffled_control)
    write_samples(context.out, pool, verdicts)
    chosen = params.evaluation
    summary = summarize(pool, params.scorer, chosen.best_of, chosen.bootstrap_samples, seed, chosen.keep)
    if params.scorer == "geneval":
        lines, reasons = [prompt.line for prompt in prompts], all_reasons(verdicts)
        summary["atoms"] = summarize_atoms(lines, reasons, chosen.bootstrap_samples, seed)
        if ranks.rank() == 0:
            write_atoms(context.out / "atoms.csv", lines, reasons)
    summary |= compare_with_real(context, painter, prompts, pictures_PNHW3[:, 0])
    if chosen.dpg_questions is not None:
        summary["dpg_bench"] = answer_dpg_bench(context, painter, judge, model)
    if ranks.rank() == 0:
        pool.save(context.out)
        write_json(context.out / "summary.json", summary)
    return headline(summary)


def compare_with_real(
    context: Context, painter: Painter, prompts: Sequence[Prompt], pictures_PHW3: Pictures
) -> dict[str, Any]:
    """The distance of the first picture of each prompt to real held-out pictures, and with a CLIP the CLIP score.

    With networks of the user's there are Frechet distances too, by the networks' names. A distance is left out where
    there are too few pictures for its interval.
    """
    features = open_features(context.params.evaluation.features_path, painter.autoencoder, context.device)
    real_MD, drawn_PD = read_features(paths.SCORER / REAL_FEATURES), features.read(pictures_PHW3)
    found: dict[str, Any] = {"features": features.name}
    enough = min(len(real_MD), len(drawn_PD)) >= LEAST_PICTURES
    if enough:
        found["distance"] = asdict(distance(real_MD, drawn_PD))
    known = [(features, real_MD, drawn_PD)] if isinstance(features, VisionFeatures) else []
    if (path := context.params.evaluation.inception_path) is not None:
        inception = InceptionFeatures(published_path(path), context.device)
        known.append((inception, read_features(paths.SCORER / REAL_INCEPTION), inception.read(pictures_PHW3)))
    if known and enough:
        measured = {network.name: frechet_distance(*pair, context.device) for network, *pair in known}
        found["frechet"] = {name: asdict(each) | {"note": each.note} for name, each in measured.items()}
    if isinstance(features, VisionFeatures):
        scores_P = features.clip_scores(drawn_PD, [prompt.text for prompt in prompts])
        found |= {} if scores_P is None else {"clip_score": asdict(mean_interval(scores_P))}
    return found


def answer_dpg_bench(context: Context, painter: Painter, judge: Judge, model: str) -> dict[str, Any]:
    """The score of DPG-Bench on four pictures of each of its prompts, which the vision-language judge answers."""
    # This module imports transformers, which takes seconds.
    from tasks.evaluation.judges.vision_language_judge import VisionLanguageJudge

    assert isinstance(judge, VisionLanguageJudge)  # params refuse questions for another kind
    params, chosen = context.params, context.params.evaluation
    assert chosen.dpg_questions is not None
    prompts = read_questions(own_path(chosen.dpg_questions))
    pictures_PNHW3 = painter.draw(
        [prompt.text for prompt in prompts],
        PICTURES_PER_PROMPT,
        derive(params.compute.seed, "dpg_bench"),
        f"evaluate@{model}, DPG-Bench",
        context.out / DPG_PICTURES,
    )
    log_yes = answer_prompts(prompts, lambda place: list(pictures_PNHW3[place]), judge.log_yes_to)
    return summarize_answers(prompts, log_yes, chosen.bootstrap_samples, params.compute.seed)


if __name__ == "__main__":
    stage_command("evaluate", __doc__)
