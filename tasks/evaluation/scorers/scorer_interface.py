"""What stages need of a scorer: a verdict on each picture, and the labels that a judge learns from."""

from collections.abc import Sequence
from typing import Protocol

from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.prompts.evaluation_prompts import Prompt


class Scorer(Protocol):
    """Says whether pictures are right. Its name is that of params (`geneval`, `matching`)."""

    name: str
    note: str | None
    """What must be said beside its scores, or None."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError if it cannot score pictures of one of these prompts."""
        ...

    def score(self, line: Line, pictures: Pictures) -> list[Verdict]:
        """A verdict for each picture of (N, H, W, 3), all drawn for the prompt `line`."""
        ...
