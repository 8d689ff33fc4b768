"""The scorer of an experiment, as the stage `scorer` left it."""

from model.text_encoder import TextEncoder
from tasks.evaluation.detectors.detector_choice import build_detector
from tasks.evaluation.judges.judge_network import load_judge
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.evaluation.scorers.matching_scorer import MatchingScorer
from tasks.evaluation.scorers.scorer_interface import Scorer
from tasks.params.experiment_params import Params
from tasks.system import paths

PROMPTS = "prompts.json"
"""File of the prompts that models are scored on."""
SUMMARY = "summary.json"
REAL_FEATURES = "real_features.npy"
"""File of the features (M, D) of real held-out pictures, float32."""
REAL_PICTURES = 512
"""Held-out pictures at most whose features are kept; more would hardly narrow the interval of a distance."""


def open_scorer(params: Params, text_encoder: TextEncoder, device: str) -> Scorer:
    """The scorer that the stage `scorer` made ready. Raises UserError if a file of it is missing or does not fit."""
    if params.scorer == "geneval":
        return GenEvalScorer(build_detector(params.geneval, device))
    return MatchingScorer(load_judge(paths.SCORER, device), text_encoder)
