"""The report's numbers as plain values, read from the stages' outputs. `results/summary.json` holds them."""

from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tasks.computing.seeds import numpy_generator
from tasks.evaluation.evaluation_summary import CHOOSERS
from tasks.evaluation.picture_pool import load_pool
from tasks.evaluation.score_statistics import Array, difference
from tasks.params.experiment_params import Params
from tasks.reporting.adaptive_records import adaptive_records
from tasks.reporting.finetune_recovery import beyond_half, recovered_share
from tasks.reporting.loss_curves import read_curve
from tasks.stages import scored_models, stages_of
from tasks.system import paths
from tasks.system.files import read_json
from tasks.system.manifest import MANIFEST, sha256_file

Record = dict[str, Any]
MEASURED_WHERE_POSSIBLE = ("atoms", "distance", "clip_score", "frechet", "dpg_bench")
"""Keys of an evaluation's summary that only some scorers and some models of the user's give."""


def collect(params: Params) -> Record:
    """The whole summary. Raises UserError naming the first file that is missing or broken."""
    controls = read_json(paths.CONTROLS / "summary.json")
    return {
        "models": [model_record(name) for name in scored_models(params)],
        "grown_gain": grown_gain(params) if "small" in params.workflow.baselines else None,
        "cuts": [cut_record(depth, controls["random_cuts"][str(depth)], params) for depth in params.prune.depths],
        "scratch": [scratch_record(depth, params) for depth in params.scratch.depths],
        "sft": [sft_record(model, params) for model in params.sft.models],
        "controls": {name: plain(controls[name]) for name in ("noise", "untrained")},
        "judge": read_json(paths.JUDGE / "metrics.json"),
        "keep": params.evaluation.keep,
        "adaptive": adaptive_records(params),
        "growth": read_json(paths.GROWN_INIT / "growth.json")
        | {"heldout_loss_small": read_json(paths.GROWN_INIT / "metrics.json")["heldout_loss_small"]},
        "autoencoder": read_json(paths.AUTOENCODER / "metrics.json"),
        "text_encoder": read_json(paths.TEXT_ENCODER / "metrics.json"),
        "scorer": scorer_record(),
        "seed": params.compute.seed,
        "stages": measured_costs(params),
    }


def model_record(name: str) -> Record:
    """One model: its size, held-out loss, score, the score of each chooser among N pictures, and seconds per picture.

    GenEval's atoms, distances to real pictures, a CLIP score and DPG-Bench's are there if they were measured, and
    seconds if the stage latency ran.
    """
    metrics = read_json(paths.model_folder(name) / "metrics.json")
    evaluation = read_json(paths.EVALUATION / name / "summary.json")
    sizes = ("depth", "parameters", "heldout_loss", "heldout_loss_low", "heldout_loss_high")
    record = {"name": name} | {key: metrics[key] for key in sizes}
    record |= {key: evaluation[key] for key in ("prompts", "pictures_per_prompt", "scorer", "score")}
    record["by_seen"] = {kind: plain(scored) for kind, scored in evaluation["by_seen"].items()}
    for chooser in CHOOSERS:
        record[chooser] = {n: plain(scored) for n, scored in evaluation[chooser].items()}
    record |= {key: evaluation[key] for key in MEASURED_WHERE_POSSIBLE if key in evaluation}
    return record | seconds_per_picture(record["depth"])


def scorer_record() -> Record:
    """The scorer: its name, its note, the features of distances, and where it has them a ceiling and a floor."""
    found = read_json(paths.SCORER / "summary.json")
    bounds = {name: plain(found[name]) for name in ("ceiling", "shuffled") if name in found}
    return {"name": found["scorer"], "note": found["note"], "features": found["features"], **bounds}


def seconds_per_picture(depth: int) -> Record:
    """The seconds that a network of this depth takes for a picture, with their interval. Empty if not measured."""
    path = paths.LATENCY / "latency.json"
    measured = read_json(path)["seconds_per_picture"] if path.exists() else {}
    if str(depth) not in measured:
        return {}
    of_depth = measured[str(depth)]
    return {
        "seconds_per_picture": of_depth["value"],
        "seconds_per_picture_low": of_depth["low"],
        "seconds_per_picture_high": of_depth["high"],
    }


def grown_gain(params: Params) -> Record:
    """The grown model's GenEval score minus the small model's, paired by prompt."""
    (grown, tasks), (small, _) = correctness("grown"), correctness("small")
    rng = numpy_generator(params.compute.seed, "report bootstrap", "grown")
    return asdict(difference(grown, small, tasks, params.evaluation.bootstrap_samples, rng).overall)


def plain(scored: Record) -> Record:
    """A score with its interval, but without its tasks."""
    return {key: scored[key] for key in ("overall", "low", "high")}


def cut_record(depth: int, random_choice: Record, params: Params) -> Record:
    """One cut: its removed blocks, its gain over random choices of blocks, its loss, and what fine-tuning won back.

    Differences of GenEval scores are paired by prompt.
    """
    pruning = read_json(paths.model_folder(f"pruned-{depth}") / "pruning.json")
    random_PN = load_file(paths.RANDOM_CUTS)[str(depth)]
    grown, tasks = correctness("grown")
    (pruned, _), (finetuned, _) = correctness(f"pruned-{depth}"), correctness(f"finetuned-{depth}")
    samples = params.evaluation.bootstrap_samples

    def rng() -> np.random.Generator:
        return numpy_generator(params.compute.seed, "report bootstrap", depth)

    def gain(first_PN: Array, second_PN: Array) -> Record:
        return asdict(difference(first_PN, second_PN, tasks, samples, rng()).overall)

    beyond = beyond_half(pruned, finetuned, grown, tasks, samples, rng())
    share = recovered_share(pruned, finetuned, grown, tasks, samples, rng())
    return {
        "depth": depth,
        "removed": pruning["removed"],
        "heldout_loss": pruning["heldout_loss"],
        "random_choice": plain(random_choice),
        "gain_over_random": gain(pruned, random_PN),
        "lost": gain(grown, pruned),
        "won_back": gain(finetuned, pruned),
        "beyond_half": asdict(beyond),
        "recovered_share": asdict(share) if share else None,
    }


def scratch_record(depth: int, params: Params) -> Record:
    """One model trained from scratch: its samples and loss, and how the grown model's training and score compare.

    `grown_samples` are those that the grown model had been trained on when its held-out loss was first as low, beside
    the small model's `small_samples`; None if it never was. The gain is grown minus scratch, paired by prompt.
    """
    name = f"scratch-{depth}"
    scratch, small, trained = read_curve(name), read_curve("small"), read_curve("grown")
    loss = scratch.heldout[-1][1]
    (grown, tasks), (control, _) = correctness("grown"), correctness(name)
    rng = numpy_generator(params.compute.seed, "report bootstrap", "scratch", depth)
    return {
        "depth": depth,
        "samples": scratch.samples,
        "heldout_loss": loss,
        "small_samples": small.samples,
        "grown_samples": next((samples for samples, own in trained.heldout if own <= loss), None),
        "gain": asdict(difference(grown, control, tasks, params.evaluation.bootstrap_samples, rng).overall),
    }


def sft_record(model: str, params: Params) -> Record:
    """One model that was fine-tuned on chosen pairs: its data set, and its gain, in all and by task.

    The gain is of the experiment's scorer, paired by prompt.
    """
    (after, tasks), (before, _) = correctness(f"sft-{model}"), correctness(model)
    rng = numpy_generator(params.compute.seed, "report bootstrap", "sft", model)
    gain = difference(after, before, tasks, params.evaluation.bootstrap_samples, rng)
    return {
        "model": model,
        "data": params.sft.data,
        "gain": asdict(gain.overall),
        "tasks": {task: asdict(value) for task, value in gain.tasks.items()},
    }


def correctness(name: str) -> tuple[Array, list[str]]:
    """The scorer's verdicts (P, N) on a model's pictures, as 0 and 1, and the task of each prompt."""
    pool = load_pool(paths.EVALUATION / name)
    return pool.correct_PN.astype(np.float64), pool.tasks


def measured_costs(params: Params) -> list[Record]:
    """The seconds and the peak memory of each stage, in the order in which stages run.

    A record that belongs to another output than the one in place is left out: that output came out of a cache.
    """
    costs = []
    for name, stage in stages_of(params).items():
        if stage.output == paths.RESULTS:
            continue  # the report itself, which is being made
        path = paths.STAGE_RECORDS / f"{name}.json"
        manifest = stage.output / MANIFEST
        record = read_json(path) if path.exists() and manifest.exists() else None
        if record and record["output"] == sha256_file(manifest):
            costs.append({key: record[key] for key in ("name", "seconds", "peak_memory_bytes")})
    return costs
