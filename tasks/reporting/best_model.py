"""Which model of a run is best, and which others its number cannot be told from. A flow's end asks it, without torch.

The number is the score of one picture. If the run was too short for scores to mean anything, it is the held-out loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.reporting.learned import has_learned

Record = Mapping[str, Any]
MARK = "★"
"""What stands beside the best number of a table."""
OF_OTHER_PICTURES = "sft-"
"""How the names of models begin whose held-out loss is of their own data set."""


@dataclass(frozen=True)
class Best:
    """The models with the best number, whether that number is the score, and the others whose intervals meet theirs.

    `names` has several models if their numbers are equal. `undecided` follows the order of the summary.
    """

    names: tuple[str, ...]
    by_score: bool
    undecided: tuple[str, ...]


def best_model(summary: Record) -> Best | None:
    """The best of a summary's models; None if fewer than two can be compared.

    The best score is the highest, and the best held-out loss the lowest. The comparison is by each model's own 95 %
    interval. It is not paired by prompt, so that two models may differ although their intervals meet.
    """
    if len(summary["models"]) < 2:
        return None
    by_score = has_learned(summary)
    compared = {
        model["name"]: _score(model) if by_score else _negative_loss(model)
        for model in summary["models"]
        if by_score or not model["name"].startswith(OF_OTHER_PICTURES)
    }
    if len(compared) < 2:
        return None
    highest = max(value for value, _, _ in compared.values())
    names = [name for name, (value, _, _) in compared.items() if value == highest]
    low = min(compared[name][1] for name in names)
    undecided = [name for name, (_, _, high) in compared.items() if name not in names and high >= low]
    return Best(tuple(names), by_score, tuple(undecided))


def best_in_words(best: Best, score_name: str) -> str:
    """Sentences that name the best model, and say whether intervals tell it from the others."""
    measure = f"{score_name} is highest" if best.by_score else "Held-out loss is lowest"
    several = len(best.names) > 1
    named = f"{measure} for {in_words(best.names)}{', which are equal' if several else ''}."
    if not best.undecided:
        return f"{named} No other model's 95 % interval meets {'theirs' if several else 'its own'}."
    whose, meet, do = ("Their 95 % intervals", "meet", "do") if several else ("Its 95 % interval", "meets", "does")
    others = f"{'those' if len(best.undecided) > 1 else 'that'} of {in_words(best.undecided)}"
    return f"{named} {whose} {meet} {others}, and {do} not tell them apart."


def in_words(names: Sequence[str]) -> str:
    """Names as a list in a sentence: `a, b and c`. One name stands alone."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _score(model: Record) -> tuple[float, float, float]:
    score = model["score"]
    return score["overall"], score["low"], score["high"]


def _negative_loss(model: Record) -> tuple[float, float, float]:
    """The held-out loss and its interval with the sign turned, so that the highest is best here too."""
    loss = model["heldout_loss"]
    low, high = (model.get(f"heldout_loss_{end}") for end in ("low", "high"))
    return -loss, -(loss if high is None else high), -(loss if low is None else low)
