"""The labelled pictures from which a vision-language judge is fine-tuned, as shards on disk.

A folder holds the splits `train` and `heldout` in the project's shards, one picture and its prompt to a sample. The
samples of a split are its prompts one after another, each with as many pictures. `examples.safetensors` says of each
sample whether its picture is right, and whether it belongs to the balanced choice. `train.json` and `heldout.json` hold
the prompts.

Shapes: Q pictures, P prompts, N pictures of each prompt.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tasks.data.picture_dataset import PictureDataset
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.system.errors import UserError

LABELS = "examples.safetensors"


@dataclass(frozen=True)
class Examples:
    """One split of a folder: pictures, prompts (P), verdicts (P, N) and the indices of the balanced choice."""

    pictures: PictureDataset
    prompts: list[Prompt]
    yes_PN: NDArray[np.bool_]
    balanced: NDArray[np.int64]

    @property
    def images_per_prompt(self) -> int:
        """Pictures of each prompt (N)."""
        return self.yes_PN.shape[1]

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that a picture was drawn for."""
        return self.prompts[index // self.images_per_prompt]


def read_examples(folder: Path, split: str) -> Examples:
    """One split of a folder that `write_examples` wrote. Raises UserError naming a file that is missing or broken."""
    try:
        arrays = load_file(folder / LABELS)
        yes_PN, balanced = arrays[f"{split}/yes"].astype(np.bool_), arrays[f"{split}/balanced"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder / LABELS} cannot be read ({error}): run python -m tasks.judge_examples") from None
    return Examples(PictureDataset(folder, split), read_prompts(folder / f"{split}.json"), yes_PN, balanced)
