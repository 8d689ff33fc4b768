"""What a vision-language judge needs from a model: the logits of the first token of its answers, with gradients.

Shapes: B questions, V words of the vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tasks.system.errors import UserError


class AnsweringModel(Protocol):
    """A model that answers questions about pictures. `yes` and `no` are the tokens that begin either answer."""

    @property
    def network(self) -> PreTrainedModel:
        """The model's network."""
        ...

    @property
    def yes(self) -> tuple[int, ...]:
        """The tokens that begin a yes."""
        ...

    @property
    def no(self) -> tuple[int, ...]:
        """The tokens that begin a no."""
        ...

    def answer_logits(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> Tensor:
        """Logits (B, V) of the first token of each answer; one picture (H, W, 3) and one question for each."""
        ...


def load_part(load: Callable[..., Any], folder: Path, remote_code: bool) -> Any:
    """Call transformers' `load`, and turn any error of it into a UserError of one line."""
    try:
        return load(local_files_only=True, trust_remote_code=remote_code)
    except Exception as error:  # each model class has its own way to fail on files that do not fit it
        if not remote_code and "trust_remote_code" in str(error):
            raise own_code_is_not_run(folder) from None
        raise UserError(
            f"{folder} cannot be loaded as a vision-language model: {' '.join(str(error).split())}"
        ) from None


def own_code_is_not_run(folder: Path) -> UserError:
    """The error for a folder that brings Python code, where `remote_code` is false."""
    return UserError(
        f"{folder} brings Python code of its own, which is not run: "
        "set judge.remote_code to true if you trust it, or choose another model"
    )
