"""A vision-language model of any size and kind that transformers loads for images and text, with its processor.

Shapes: B questions, T tokens, V words of the vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin, logging

from model.finite_numbers import check_finite_weights
from tasks.data.stage_models import loading_models
from tasks.evaluation.judges.answering_model import load_part
from tasks.evaluation.judges.judge_template import conversation
from tasks.system.errors import UserError

logging.disable_progress_bar()  # transformers shows bars while it loads and saves, even where output is piped


@dataclass(frozen=True)
class ImageTextModel:
    """An `AnsweringModel`. The chat template of its processor turns picture and question into tokens."""

    network: PreTrainedModel
    processor: ProcessorMixin
    yes: tuple[int, ...]
    no: tuple[int, ...]

    def answer_logits(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> Tensor:
        """Logits (B, V) of the first token of each answer.

        Padding is on the right, where no token of the question sees it. Each row is read at its own last token.
        """
        inputs = self.processor.apply_chat_template(
            [conversation(*pair) for pair in zip(pictures, questions, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        ).to(self.network.device, dtype=self.network.dtype)
        mask_BT = inputs["attention_mask"]
        last_B = (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).argmax(dim=1)
        rows = torch.arange(len(last_B), device=last_B.device)
        # Behind LoRA's wrapper is the model whose signature says what it takes; the wrapper passes all on.
        inner = self.network.get_base_model() if hasattr(self.network, "get_base_model") else self.network
        if "logits_to_keep" not in inspect.signature(inner.forward).parameters:
            return self.network(**inputs).logits[rows, last_B]
        kept, place_B = last_B.unique(return_inverse=True)  # logits of all tokens would not fit into memory
        return self.network(**inputs, logits_to_keep=kept).logits[rows, place_B]


def load_image_text_model(folder: Path, *, remote_code: bool, dtype: str, device: str) -> ImageTextModel:
    """The model in a folder, frozen. Nothing is fetched from the network.

    Raises UserError naming the folder if it holds no vision-language model, if the model cannot be asked, or if it
    brings Python code of its own and `remote_code` is false.
    """
    processor = load_part(lambda **options: AutoProcessor.from_pretrained(folder, **options), folder, remote_code)
    check_processor(processor, folder)
    yes, no = (answer_tokens(processor, word, folder) for word in ("yes", "no"))
    return ImageTextModel(load_network(folder, dtype, remote_code).to(device), processor, yes, no)


def load_network(folder: Path, dtype: str, remote_code: bool) -> PreTrainedModel:
    """The network of a folder, with all weights read from safetensors files, which hold no pickle.

    Raises UserError naming the folder if a weight is missing or not finite, or if the model is not decoder-only.
    """

    def load(**options: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
        )

    model, report = load_part(load, folder, remote_code)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights of its model, {missing[0]} first")
    with loading_models():
        check_finite_weights(dict(model.named_parameters()), folder)
    if model.config.is_encoder_decoder:
        raise UserError(f"{folder} encodes the question apart from the answer: choose a decoder-only model as judge")
    return model.eval().requires_grad_(False)


def check_processor(processor: Any, folder: Path) -> None:
    """Raises UserError unless the processor takes pictures and text and has a chat template.

    A tokenizer without a padding token gets its end token as one: batches need padding, which the mask hides.
    """
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(f"{folder} has no processor for pictures and text: it holds no vision-language model")
    if processor.chat_template is None:
        raise UserError(f"{folder} has no chat template: choose a model that was tuned to answer as judge.path")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token


def answer_tokens(processor: Any, word: str, folder: Path) -> tuple[int, ...]:
    """The single tokens that spell `word`: in lower case or capitalised, with or without a space before it.

    Raises UserError if there is none: then the first token of an answer does not tell yes from no.
    """
    tokenizer = processor.tokenizer
    found = set()
    for variant in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        tokens = tokenizer.encode(variant, add_special_tokens=False)
        if len(tokens) == 1 and tokenizer.decode(tokens).strip().lower() == word:
            found.add(tokens[0])
    if not found:
        raise UserError(f"{folder} has no single token for {word!r}: choose another model as judge.path")
    return tuple(sorted(found))
