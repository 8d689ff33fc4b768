"""The measure that the report's headline shows: the score, or the held-out loss if the run was too short to learn."""

from dataclasses import dataclass

from tasks.reporting.learned import has_learned
from tasks.reporting.report_numbers import Record


@dataclass(frozen=True)
class Measure:
    """A number of each model, under its `key` in a model's record, with the `label` that an axis gives it."""

    key: str
    label: str

    @property
    def is_score(self) -> bool:
        """Whether the number is a score, which begins at zero and has a ceiling and a floor."""
        return self.key == "score"

    def interval(self, model: Record) -> tuple[float, float, float]:
        """The number of a model, with the ends of its interval. Where there is no interval, both are the number."""
        if self.is_score:
            return model["score"]["overall"], model["score"]["low"], model["score"]["high"]
        value = model[self.key]
        return value, model.get(f"{self.key}_low", value), model.get(f"{self.key}_high", value)


def headline_measure(summary: Record, score_name: str) -> Measure:
    """The score, or the held-out loss if the run was too short for the score to say anything of its models."""
    if has_learned(summary):
        return Measure("score", f"{score_name}, one picture")
    return Measure("heldout_loss", "held-out loss, lower is better")
