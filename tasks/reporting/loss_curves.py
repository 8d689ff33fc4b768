"""Loss curves of the trained models, as the training loop wrote them."""

import csv
from dataclasses import dataclass
from pathlib import Path

from tasks.system import paths
from tasks.system.errors import UserError


@dataclass(frozen=True)
class Curve:
    """The points (samples seen, loss) of one training run. Held-out losses are those of the averaged weights."""

    name: str
    training: list[tuple[float, float]]
    heldout: list[tuple[float, float]]

    @property
    def samples(self) -> float:
        """The number of samples that training had seen at its end."""
        return self.heldout[-1][0]


def read_curve(name: str) -> Curve:
    """The curve of a trained model by its name. Raises UserError naming a file that is missing or broken."""
    folder = paths.model_folder(name)
    return Curve(name, _points(folder / "history.csv", "loss"), _points(folder / "heldout.csv", "heldout_loss"))


def _points(path: Path, key: str) -> list[tuple[float, float]]:
    """The points of a CSV file whose column `key` holds the losses."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [(float(row["samples"]), float(row[key])) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the stage that writes it") from None
