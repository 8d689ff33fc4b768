"""A vision-language model whose folder brings its own code and is asked through it, as NVILA, SANA-1.5's judge, is.

Such a folder has an `auto_map` for `AutoModel` in its config.json, and no class that transformers knows for images and
text. The published pick script (tools/inference_scaling) loads `NVILA-Lite-2B-Verifier` by
`AutoModel.from_pretrained(name, trust_remote_code=True)`, and asks it by
`response, scores = model.generate_content([image, question])`. `scores[0]` (1, V) are the scores of the answer's first
token. The code chooses the precision and generates the whole answer, one question at a time.

Shapes: B questions, V words of the vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from model.finite_numbers import check_finite_weights
from tasks.data.stage_models import loading_models
from tasks.evaluation.judges.answering_model import load_part, own_code_is_not_run
from tasks.system.errors import UserError


@dataclass(frozen=True)
class RemoteCodeModel:
    """An `AnsweringModel` that is asked through its own `generate_content`."""

    network: PreTrainedModel
    yes: tuple[int, ...]
    no: tuple[int, ...]
    folder: Path

    def answer_logits(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> Tensor:
        """Scores (B, V) of the first token of each answer. Raises UserError if the code gives no scores."""
        return torch.stack([self._scores(*pair) for pair in zip(pictures, questions, strict=True)])

    def _scores(self, picture_HW3: NDArray[np.uint8], question: str) -> Tensor:
        """The scores (V,) of the first token of one answer."""
        answer = self.network.generate_content([Image.fromarray(picture_HW3), question])
        if not isinstance(answer, tuple):  # NVILA's base models give the response alone
            raise UserError(
                f"{self.folder} answers without scores: choose a model whose generate_content returns the response and "
                "the scores of its tokens, such as NVILA-Lite-2B-Verifier"
            )
        _, scores = answer
        return scores[0][0]


def is_asked_through_its_own_code(folder: Path) -> bool:
    """Whether a folder maps `AutoModel` to code of its own, and transformers has no class of images and text for it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        mapped, kind = config.get("auto_map", {}), config.get("model_type")
    except (OSError, ValueError, AttributeError):
        return False  # transformers says what is wrong with the folder
    known = "AutoModelForImageTextToText" in mapped or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return "AutoModel" in mapped and not known


def load_remote_code_model(folder: Path, *, remote_code: bool, device: str) -> RemoteCodeModel:
    """The model in a folder, frozen, with the tokens by which the published script reads its answers.

    Raises UserError naming the folder if its code cannot be run, is not allowed to run (`remote_code` is false), or
    cannot be asked, and if a weight is not finite.
    """
    if not remote_code:
        raise own_code_is_not_run(folder)

    def load(**options: bool) -> PreTrainedModel:
        # Neither a precision nor a report of missing weights is asked for: NVILA's own `from_pretrained` gives none.
        return AutoModel.from_pretrained(folder, use_safetensors=True, **options)

    network = load_part(load, folder, remote_code)
    with loading_models():
        check_finite_weights(dict(network.named_parameters()), folder)
    for name in ("generate_content", "tokenizer"):
        if not hasattr(network, name):
            raise UserError(f"{folder} has a model without {name}: it cannot be asked about a picture as NVILA is")
    yes, no = (network.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    if yes == no:
        raise UserError(f"{folder} begins 'yes' and 'no' with one token: choose another model as judge.path")
    return RemoteCodeModel(network.to(device).eval().requires_grad_(False), (yes,), (no,), folder)
