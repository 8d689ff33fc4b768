"""Stage `evaluate@M`: scores the model M by the experiment's scorer, for one picture and for the best of N.

It writes the first four pictures of each prompt in GenEval's own folder layout with `results.jsonl`, so that GenEval's
tools can be run on them. The whole pool is in `pictures.npy`, with all verdicts in `pool.safetensors`. The scores are
in `summary.json`, with the distance of the drawn pictures to real held-out ones.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tasks.computing import ranks
from tasks.computing.seeds import derive
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.evaluation_steps import all_reasons, judge_pool, score_prompts, write_samples
from tasks.evaluation.evaluation_summary import headline, summarize
from tasks.evaluation.feature_distance import LEAST_PICTURES, distance, mean_interval
from tasks.evaluation.geneval_atoms import summarize_atoms
from tasks.evaluation.judges.judge_choice import open_judge
from tasks.evaluation.picture_drawing import Painter, load_painter
from tasks.evaluation.picture_features import VisionFeatures, open_features
from tasks.evaluation.picture_pool import PICTURES, pool_size
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.evaluation.scorers.scorer_choice import PROMPTS, REAL_FEATURES, open_scorer
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json


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
    summary |= compare_with_real(context, painter, prompts, pictures_PNHW3[:, 0])
    if ranks.rank() == 0:
        pool.save(context.out)
        write_json(context.out / "summary.json", summary)
    return headline(summary)


def compare_with_real(
    context: Context, painter: Painter, prompts: Sequence[Prompt], pictures_PHW3: Pictures
) -> dict[str, Any]:
    """The distance of the first picture of each prompt to real held-out pictures, and with a CLIP the CLIP score.

    A distance is left out where there are too few pictures for its interval.
    """
    features = open_features(context.params.evaluation.features_path, painter.autoencoder, context.device)
    real_MD, drawn_PD = np.load(paths.SCORER / REAL_FEATURES), features.read(pictures_PHW3)
    found: dict[str, Any] = {"features": features.name}
    if min(len(real_MD), len(drawn_PD)) >= LEAST_PICTURES:
        found["distance"] = asdict(distance(real_MD, drawn_PD))
    if isinstance(features, VisionFeatures):
        scores_P = features.clip_scores(drawn_PD, [prompt.text for prompt in prompts])
        found |= {} if scores_P is None else {"clip_score": asdict(mean_interval(scores_P))}
    return found


if __name__ == "__main__":
    stage_command("evaluate", __doc__)
