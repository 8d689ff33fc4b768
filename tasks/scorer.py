"""Stage `scorer`: makes ready what decides whether drawn pictures are right, and the prompts that models are scored on.

The scorer geneval is a detector with GenEval's rules. The stage checks that the detector can find what the prompts ask
for. The scorer matching is a network that the stage trains on one half of the captioned pictures. It then measures the
ceiling, which is the score of the real held-out pictures, and a floor, which is their score for captions of other
pictures.

For both the stage keeps the features of real held-out pictures, by which each model's distance to them is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.autoencoder import load_autoencoder
from model.text_encoder import TextEncoder, load_text_encoder
from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import PictureDataset
from tasks.data.published_files import published_path
from tasks.data.stage_models import loading_models
from tasks.evaluation.best_of_n import other_prompts
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.detectors.detector_choice import build_detector
from tasks.evaluation.evaluation_summary import as_record
from tasks.evaluation.inception_features import InceptionFeatures
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, save_judge
from tasks.evaluation.matching.caption_choices import caption_prompts
from tasks.evaluation.matching.caption_pairs import read_pairs
from tasks.evaluation.matching.pair_training import train_on_pairs
from tasks.evaluation.picture_features import open_features
from tasks.evaluation.prompts.evaluation_prompts import Prompt, chosen_prompts, write_prompts
from tasks.evaluation.score_statistics import score
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.evaluation.scorers.matching_scorer import MatchingScorer
from tasks.evaluation.scorers.scorer_choice import (
    PROMPTS,
    REAL_FEATURES,
    REAL_INCEPTION,
    REAL_PICTURES,
    SUMMARY,
)
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_csv, write_json


@dataclass(frozen=True)
class Heldout:
    """Held-out pictures (M, side, side, 3) and their captions."""

    pictures_MHW3: Pictures
    captions: list[str]


def run(context: Context) -> Metrics:
    """Write the scorer, its prompts, `summary.json` and the features of real pictures; returns counts and bounds."""
    params = context.params
    heldout = read_heldout(params.shard.image_size, max(REAL_PICTURES, params.matching.captions), params.compute.seed)
    with loading_models():
        autoencoder = load_autoencoder(paths.AUTOENCODER, context.device)
    features = open_features(params.evaluation.features_path, autoencoder, context.device)
    np.save(context.out / REAL_FEATURES, features.read(heldout.pictures_MHW3[:REAL_PICTURES]))
    if params.evaluation.inception_path is not None:
        inception = InceptionFeatures(published_path(params.evaluation.inception_path), context.device)
        np.save(context.out / REAL_INCEPTION, inception.read(heldout.pictures_MHW3[:REAL_PICTURES]))
    prompts, bounds = geneval(context) if params.scorer == "geneval" else matching(context, heldout)
    write_prompts(context.out / PROMPTS, prompts)
    write_json(context.out / SUMMARY, {"scorer": params.scorer, "features": features.name, **bounds})
    values = {name: bound["overall"] for name, bound in bounds.items() if isinstance(bound, dict)}
    return {"prompts": len(prompts), "real_pictures": min(len(heldout.captions), REAL_PICTURES), **values}


def geneval(context: Context) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts of GenEval's scorer, which it is checked to understand, and its note."""
    prompts = chosen_prompts(context.params)
    scorer = GenEvalScorer(build_detector(context.params.geneval, context.device))
    scorer.check(prompts)
    return prompts, {"detector": scorer.detector.name, "note": scorer.note}


def matching(context: Context, heldout: Heldout) -> tuple[list[Prompt], dict[str, Any]]:
    """Train the network of the scorer `matching`; its prompts are held-out captions. Returns them, and the bounds."""
    params, seed = context.params, context.params.compute.seed
    chosen = params.matching
    captions = list(dict.fromkeys(heldout.captions))
    prompts = caption_prompts(captions[: chosen.captions], captions, chosen.choices, seed)
    with loading_models():
        text_encoder = load_text_encoder(paths.TEXT_ENCODER, context.device)
    scorer = MatchingScorer(train(context, text_encoder), text_encoder)
    pictures = [heldout.pictures_MHW3[heldout.captions.index(prompt.text)] for prompt in prompts]
    others = other_prompts(len(prompts), numpy_generator(seed, "captions of other pictures"))

    def bound(asked: Sequence[Prompt]) -> dict[str, Any]:
        verdicts = [scorer.score(prompt.line, shown[None])[0] for prompt, shown in zip(asked, pictures, strict=True)]
        correct_P1: NDArray[np.float64] = np.array([[float(verdict.correct)] for verdict in verdicts])
        tasks = [prompt.tag for prompt in asked]
        rng = numpy_generator(seed, "geneval bootstrap")
        return as_record(score(correct_P1, tasks, params.evaluation.bootstrap_samples, rng))

    bounds = {"ceiling": bound(prompts), "shuffled": bound([prompts[other] for other in others])}
    return prompts, {"note": scorer.note, "chance": 1 / min(chosen.choices, len(captions)), **bounds}


def train(context: Context, text_encoder: TextEncoder) -> JudgeNetwork:
    """Train the network on the scorer's half of the pairs, and write it with its history."""
    params, seed = context.params, context.params.compute.seed
    pairs = read_pairs(paths.SHARDS, "scorer", params.matching.pairs, params.shard.image_size, seed)
    torch.manual_seed(derive(seed, "scorer weights"))
    network = JudgeNetwork(JudgeConfig(text_encoder.channels)).to(context.device)
    history = train_on_pairs(network, pairs, text_encoder, params.matching, seed, params.compute.dtype, "matching")
    for row in history:
        context.tracker.log_metrics({"loss": row["loss"]}, step=int(row["step"]))
    write_csv(context.out / "history.csv", ("step", "loss"), history)
    save_judge(network, context.out)
    return network


def read_heldout(side: int, limit: int, seed: int) -> Heldout:
    """Up to `limit` held-out pictures of (side, side) with their captions, in a random order."""
    dataset = PictureDataset(paths.SHARDS, "heldout")
    chosen = numpy_generator(seed, "held-out pictures").permutation(len(dataset))[:limit]
    return Heldout(dataset.squares(chosen, side), [dataset.caption(int(index)) for index in chosen])


if __name__ == "__main__":
    stage_command("scorer", __doc__)
