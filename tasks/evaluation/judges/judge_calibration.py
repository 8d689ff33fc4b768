"""The judge's scores by which the threshold of adaptive best of N is set: of new pictures of training prompts.

The judge was not trained on these pictures. Of pictures that it was trained on, it would be surer than of any other.

Shapes: P prompts, N pictures of each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tasks.evaluation.prompts.evaluation_prompts import ALL_TASKS
from tasks.system.errors import UserError

FILE = "calibration.safetensors"


@dataclass(frozen=True)
class Calibration:
    """The judge's scores (P, N) and each prompt's task."""

    scores_PN: NDArray[np.float64]
    tasks: list[str]

    def save(self, folder: Path) -> None:
        """Write `calibration.safetensors` into an existing folder; the same scores give the same bytes."""
        task_P = np.array([ALL_TASKS.index(task) for task in self.tasks], dtype=np.int64)
        save_file({"scores": np.ascontiguousarray(self.scores_PN), "task": task_P}, folder / FILE)


def load_calibration(folder: Path) -> Calibration:
    """The calibration that the stage `judge` wrote. Raises UserError naming the file if it is missing or broken."""
    try:
        arrays = load_file(folder / FILE)
        return Calibration(arrays["scores"], [ALL_TASKS[index] for index in arrays["task"]])
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise UserError(f"{folder / FILE} cannot be read ({error}): run python -m tasks.judge") from None
