"""The names of a score for people. GenEval is named only where it, or at least its rules, scored the pictures."""

from tasks.evaluation.scorer_labels import SCORER_LABELS

SCENES_SCORE = "GenEval's rules"
"""The name of the score of rendered scenes: the rules are GenEval's, but its detector and its photographs are not."""


def scores_scenes(scorer: str, detector: str | None) -> bool:
    """Whether GenEval's rules score rendered scenes, with the scenes' own detector in place of GenEval's."""
    return scorer == "geneval" and detector == "scenes"


def score_name(scorer: str, detector: str | None) -> str:
    """The short name of the score, for axes and the heads of tables."""
    return SCENES_SCORE if scores_scenes(scorer, detector) else SCORER_LABELS[scorer]


def full_name(scorer: str, detector: str | None) -> str:
    """The name of the score where it stands alone: `GenEval's rules on rendered scenes`."""
    return score_name(scorer, detector) + (" on rendered scenes" if scores_scenes(scorer, detector) else "")
