"""Stage `geneval@M`: scores the model M on GenEval's six tasks, and on choosing the best of N pictures with the judge.

Writes the first four pictures of each prompt in GenEval's own folder layout with `results.jsonl`, so that its tools can
be run on them; the whole pool in `pictures.npy`, with all verdicts in `pool.safetensors`; and `summary.json`.
"""

import time
from collections.abc import Sequence

from tasks import layout, ranks
from tasks.context import Context, Metrics
from tasks.errors import UserError
from tasks.files import sha256_file, write_json
from tasks.geneval.detector import Pictures
from tasks.geneval.detectors import build_detector, check_classes
from tasks.geneval.evaluation import judge_pool, score_prompts, write_samples
from tasks.geneval.judges import open_judge
from tasks.geneval.pictures import DRAWING_SECTIONS, load_painter
from tasks.geneval.pool import PICTURES
from tasks.geneval.prompts import chosen_prompts
from tasks.geneval.summary import headline, summarize
from tasks.params import Params, load_params
from tasks.seeds import derive
from tasks.stage import Stage, bad_input_exits, main, parser


def evaluate(context: Context, model: str) -> Metrics:
    """Draw the pool of `model`, score and judge it, and write pictures, verdicts and summary."""
    params, seed = context.params, context.params.compute.seed
    prompts, detector = chosen_prompts(params), build_detector(params.geneval, context.device)
    check_classes((prompt.line for prompt in prompts), detector)
    painter = load_painter(layout.model_folder(model), params, context.device)
    started = time.monotonic()
    pictures_PNHW3 = painter.draw(
        [prompt.text for prompt in prompts],
        pool_size(params, model),
        derive(seed, "geneval"),
        f"geneval@{model}",
        context.out / PICTURES,
    )
    seconds = time.monotonic() - started
    verdicts = score_prompts(prompts, pictures_PNHW3, detector)
    judge = open_judge(layout.JUDGE, painter.text_encoder, params.compute.dtype, context.device)
    pool = judge_pool(prompts, pictures_PNHW3, verdicts, judge, seed, params.geneval.shuffled_control)
    write_samples(context.out, pool, verdicts)
    chosen = params.geneval
    summary = summarize(pool, chosen.best_of, chosen.bootstrap_samples, seed, chosen.keep)
    summary |= {"detector": detector.name, "detector_note": detector.note}
    if ranks.rank() == 0:
        pool.save(context.out)
        record_speed(context, model, pictures_PNHW3, seconds)
        write_json(context.out / "summary.json", summary)
    return headline(summary)


def pool_size(params: Params, model: str) -> int:
    """Pictures to draw for each prompt: fewer for models just cut, whose best of N is nobody's choice."""
    pruned = model.startswith("pruned-")
    return params.geneval.images_per_pruned_prompt if pruned else params.geneval.images_per_prompt


def record_speed(context: Context, model: str, pictures_PNHW3: Pictures, seconds: float) -> None:
    """Note the time of a picture of the pool in `results/`, outside the pinned output, and tell the tracker."""
    count = pictures_PNHW3.shape[0] * pictures_PNHW3.shape[1]
    speed = {"pictures": count, "seconds_per_picture": seconds / count, "threads": context.threads}
    speed["pool"] = sha256_file(context.out / PICTURES)
    write_json(layout.RESULTS / "speed" / f"{model}.json", {"model": model, "device": context.device, **speed})
    context.tracker.log_metrics({"seconds_per_picture": seconds / count})


def stage(params: Params, model: str) -> Stage:
    """The stage's record for one model. Raises UserError if the experiment has no such model."""
    names = layout.model_names(params.workflow.baselines, params.prune.depths)
    if model not in names:
        raise UserError(f"--model {model} is not in this experiment: choose from {', '.join(names)}")
    return Stage(
        name=f"geneval@{model}",
        run=lambda context: evaluate(context, model),
        inputs=(layout.model_folder(model), layout.AUTOENCODER, layout.TEXT_ENCODER, layout.JUDGE),
        out=layout.GENEVAL / model,
        sections=(*DRAWING_SECTIONS, "compute.branch_threads", "geneval"),
        branch=True,
        parallel=True,
    )


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point: `--model`, one of the experiment's."""
    arguments = parser("geneval", __doc__)
    arguments.add_argument("--model", required=True, help="small, grown, pruned-D or finetuned-D for a depth D")
    model = arguments.parse_args(argv).model
    with bad_input_exits("geneval"):
        record = stage(load_params(), model)
    main(record)


if __name__ == "__main__":
    run()
