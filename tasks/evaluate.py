"""Stage `evaluate@M`: scores the model M on GenEval's six tasks, for one picture and for the best of N by the judge.

It writes the first four pictures of each prompt in GenEval's own folder layout with `results.jsonl`, so that GenEval's
tools can be run on them. The whole pool is in `pictures.npy`, with all verdicts in `pool.safetensors`. The scores are
in `summary.json`.
"""

import time

from tasks.computing import ranks
from tasks.computing.seeds import derive
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.detectors.detector_choice import build_detector, check_classes
from tasks.evaluation.evaluation_steps import judge_pool, score_prompts, write_samples
from tasks.evaluation.evaluation_summary import headline, summarize
from tasks.evaluation.judges.judge_choice import open_judge
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.picture_pool import PICTURES, pool_size
from tasks.evaluation.prompts.evaluation_prompts import chosen_prompts
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json
from tasks.system.manifest import sha256_file


def run(context: Context, model: str) -> Metrics:
    """Draw the pool of `model`, score and judge it, and write it with its summary; returns the main scores."""
    params, seed = context.params, context.params.compute.seed
    prompts, detector = chosen_prompts(params), build_detector(params.geneval, context.device)
    check_classes((prompt.line for prompt in prompts), detector)
    painter = load_painter(paths.model_folder(model), params, context.device)
    started = time.monotonic()
    pictures_PNHW3 = painter.draw(
        [prompt.text for prompt in prompts],
        pool_size(params, model),
        derive(seed, "geneval"),
        f"evaluate@{model}",
        context.out / PICTURES,
    )
    seconds = time.monotonic() - started
    verdicts = score_prompts(prompts, pictures_PNHW3, detector)
    judge = open_judge(paths.JUDGE, painter.text_encoder, params.compute.dtype, context.device)
    pool = judge_pool(prompts, pictures_PNHW3, verdicts, judge, seed, params.evaluation.shuffled_control)
    write_samples(context.out, pool, verdicts)
    chosen = params.evaluation
    summary = summarize(pool, params.scorer, chosen.best_of, chosen.bootstrap_samples, seed, chosen.keep)
    summary |= {"detector": detector.name, "detector_note": detector.note}
    if ranks.rank() == 0:
        pool.save(context.out)
        record_speed(context, model, pictures_PNHW3, seconds)
        write_json(context.out / "summary.json", summary)
    return headline(summary)


def record_speed(context: Context, model: str, pictures_PNHW3: Pictures, seconds: float) -> None:
    """Write the mean time of a picture to `results/`: the output's bytes must not vary. Also tell the tracker."""
    count = pictures_PNHW3.shape[0] * pictures_PNHW3.shape[1]
    speed = {"pictures": count, "seconds_per_picture": seconds / count, "threads": context.threads}
    # The report shows the time only if it belongs to the pool in place, which may come out of a cache.
    speed["pool"] = sha256_file(context.out / PICTURES)
    write_json(paths.RESULTS / "speed" / f"{model}.json", {"model": model, "device": context.device, **speed})
    context.tracker.log_metrics({"seconds_per_picture": seconds / count})


if __name__ == "__main__":
    stage_command("evaluate", __doc__)
