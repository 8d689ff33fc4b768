"""The pool of pictures that a model drew for the evaluation prompts, with the verdicts of scorer and judge on each.

A pool is a folder of `pictures.npy`, `pool.safetensors` and `prompts.json`. Statistics, reports and paired comparisons
need nothing else. The pictures stay on disk and are mapped into memory: 2048 pictures of 512 pixels for each of
GenEval's prompts are 890 GB.

Shapes: P prompts, N pictures of each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts, write_prompts
from tasks.params.experiment_params import Params
from tasks.system.errors import UserError

PICTURES = "pictures.npy"
ARRAYS = "pool.safetensors"
PROMPTS = "prompts.json"


@dataclass(frozen=True)
class Pool:
    """The pictures of one model and the verdicts on them.

    `judged_PN` is the judge's log P(yes) for a picture's own prompt, and NaN if it abstained. `shuffled_PN` is the same
    for another prompt, and NaN where the judge was not asked.
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
        """Whether the training captions state each prompt's combination; None if that is not known."""
        return [prompt.seen for prompt in self.prompts]

    def save(self, folder: Path) -> None:
        """Write the pool into an existing folder. The same pool gives the same bytes.

        Mapped pictures must be mapped from that folder's `pictures.npy`, so they are only flushed.
        """
        if isinstance(self.pictures_PNHW3, np.memmap):
            self.pictures_PNHW3.flush()
        else:
            np.save(folder / PICTURES, self.pictures_PNHW3)
        elsewhere = ("prompts", "pictures_PNHW3")
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name not in elsewhere}
        save_file(arrays, folder / ARRAYS)
        write_prompts(folder / PROMPTS, self.prompts)


def load_pool(folder: Path) -> Pool:
    """The pool of a stage's output. Raises UserError naming the file that is missing or broken."""
    prompts = read_prompts(folder / PROMPTS)
    try:
        return Pool(prompts, np.load(folder / PICTURES, mmap_mode="r"), **load_file(folder / ARRAYS))
    except (OSError, ValueError, SafetensorError, TypeError) as error:
        raise UserError(f"the pool in {folder} cannot be read ({error}): run the stage that writes it") from None


def pool_size(params: Params, model: str) -> int:
    """Pictures to draw for each prompt: fewer for models just cut, whose best of N is nobody's choice."""
    pruned = model.startswith("pruned-")
    return params.evaluation.images_per_pruned_prompt if pruned else params.evaluation.images_per_prompt
