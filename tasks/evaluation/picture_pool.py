"""The pool of pictures that a model drew for the evaluation prompts, with what scorer and judge say of each.

A folder of `pictures.npy`, `pool.safetensors` and `prompts.json`: all that statistics, reports and paired comparisons
need. Pictures stay on disk, where memory maps them: 2048 of 512 pixels for each of GenEval's prompts are 890 GB.
Shapes: P prompts, N pictures of each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.params.experiment import Params
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json

PICTURES = "pictures.npy"
ARRAYS = "pool.safetensors"
PROMPTS = "prompts.json"


@dataclass(frozen=True)
class Pool:
    """Pictures and verdicts of one model.

    `judged_PN` is the judge's log P(yes), `shuffled_PN` the same where it is asked about another prompt; NaN where it
    was not asked.
    """

    prompts: list[Prompt]
    pictures_PNHW3: NDArray[np.uint8]
    correct_PN: NDArray[np.bool_]
    judged_PN: NDArray[np.float64]
    shuffled_PN: NDArray[np.float64]

    @property
    def tasks(self) -> list[str]:
        """The task of each prompt."""
        return [prompt.tag for prompt in self.prompts]

    @property
    def seen(self) -> list[bool | None]:
        """Whether each prompt's combination is in the training pictures; None where that is unknown."""
        return [prompt.seen for prompt in self.prompts]

    def save(self, folder: Path) -> None:
        """Write the pool into an existing folder, in which pictures may have been drawn already.

        The same pool gives the same bytes.
        """
        if isinstance(self.pictures_PNHW3, np.memmap):
            self.pictures_PNHW3.flush()
        else:
            np.save(folder / PICTURES, self.pictures_PNHW3)
        elsewhere = ("prompts", "pictures_PNHW3")
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name not in elsewhere}
        save_file(arrays, folder / ARRAYS)
        write_json(folder / PROMPTS, [{"line": prompt.line, "seen": prompt.seen} for prompt in self.prompts])


def load_pool(folder: Path) -> Pool:
    """The pool of a stage's output. Raises UserError naming the file that is missing or broken."""
    prompts = [Prompt(row["line"], row["seen"]) for row in read_json(folder / PROMPTS)]
    try:
        return Pool(prompts, np.load(folder / PICTURES, mmap_mode="r"), **load_file(folder / ARRAYS))
    except (OSError, ValueError, SafetensorError, TypeError) as error:
        raise UserError(f"the pool in {folder} cannot be read ({error}): run the stage that writes it") from None


def pool_size(params: Params, model: str) -> int:
    """Pictures to draw for each prompt: fewer for models just cut, whose best of N is nobody's choice."""
    pruned = model.startswith("pruned-")
    return params.geneval.images_per_pruned_prompt if pruned else params.geneval.images_per_prompt
