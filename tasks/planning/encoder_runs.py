"""The operations and memory of autoencoder, text encoder and judge, counted by running them without data.

Training is counted by running the stages' own losses. A cost that is proportional to the number of samples is
counted on a batch of one. Peaks and saved bytes are beside the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import slice_length
from model.numerics import CONVENTIONS
from model.text_encoder import Reading, TextEncoder, instruction_text
from tasks.computing.precision import autocast
from tasks.evaluation.judges.judge_network import PICTURES_AT_ONCE
from tasks.evaluation.judges.judge_training import OTHER_PROMPTS, judge_loss
from tasks.evaluation.matching.pair_training import sigmoid_loss
from tasks.params.experiment_params import Params
from tasks.planning.count_without_data import (
    count_flops,
    count_peak_bytes,
    count_saved_bytes,
    shapes_alone,
    without_data,
)
from tasks.planning.encoder_models import Encoders, Vocabulary
from tasks.planning.experiment_scale import CHARACTERS_PER_TOKEN
from tasks.planning.network_runs import DEVICE
from tasks.runtime.context import Context
from tasks.training.autoencoder_loss import reconstruction_loss
from tasks.training.text_encoder_loss import LOOK_BACK, training_loss

PLAIN = partial(Reading, instruction="none", numerics="diffusers", precision="stored")
"""Makes a plain reading of so many tokens."""


@dataclass(frozen=True)
class TrainingStep:
    """The operations of a training step, and the bytes that autograd saves for its backward pass."""

    flops: int
    saved_bytes: int


class BlankPictures:
    """A data set of black pictures of one size."""

    def __init__(self, size: int) -> None:
        self.size, self.size_groups = size, [np.arange(1)]

    def __len__(self) -> int:
        return 1

    def pictures(self, indices: Sequence[int]) -> np.ndarray:
        """Pictures (B, size, size, 3)."""
        return np.zeros((len(indices), self.size, self.size, 3), np.uint8)


class EqualPrompts(TextEncoder):
    """A text encoder that turns every caption into `max_tokens` tokens."""

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """`max_tokens` tokens for each caption."""
        return [[0] * self.reading.max_tokens for _ in captions]


@dataclass(frozen=True)
class EncoderRuns:
    """The passes of an experiment's encoders and judge."""

    params: Params
    encoders: Encoders

    @cached_property
    def encoder_flops(self) -> int:
        """Operations of the autoencoder's encoder on one picture."""
        return count_flops(self._encode())

    def encoder_peak(self, pictures: int) -> int:
        """Memory of encoding a batch. The autoencoder takes it in slices, so a slice counts."""
        return min(pictures, slice_length(self._size, self._size)) * self._encoder_peak

    @cached_property
    def decoder_flops(self) -> int:
        """Operations of the autoencoder's decoder on one latent."""
        return count_flops(self._decode())

    def decoder_peak(self, pictures: int) -> int:
        """Memory of decoding a batch. The autoencoder takes it in slices, so a slice counts."""
        return min(pictures, slice_length(self._size, self._size)) * self._decoder_peak

    @cached_property
    def _encoder_peak(self) -> int:
        return count_peak_bytes(self._encode())

    @cached_property
    def _decoder_peak(self) -> int:
        return count_peak_bytes(self._decode())

    def autoencoder_training(self) -> TrainingStep:
        """A step of the small autoencoder's training."""
        network = self.encoders.autoencoder.network
        loss = reconstruction_loss(self.encoders.autoencoder, BlankPictures(self._size), self._context)
        return _training_step(lambda: loss(0), network)

    def _encode(self) -> Callable[[], Any]:
        picture = self._picture()
        return lambda: self.encoders.autoencoder.encode(picture)

    def _decode(self) -> Callable[[], Any]:
        autoencoder = self.encoders.autoencoder
        side = self._size // autoencoder.downsampling
        with shapes_alone():
            latent = torch.empty(1, autoencoder.latent_channels, side, side)
        return lambda: autoencoder.decode(latent)

    def text_flops(self, text_tokens: int) -> int:
        """Operations of encoding one prompt, with the instruction before it."""
        return _text_flops(self.encoders.text_encoder.get_decoder(), text_tokens + self.instruction_tokens)

    def text_peak(self, prompts: int, text_tokens: int) -> int:
        """Memory of encoding a batch of prompts."""
        decoder = self.encoders.text_encoder.get_decoder()
        return _text_peak(decoder, prompts, text_tokens + self.instruction_tokens)

    @cached_property
    def instruction_tokens(self) -> int:
        """Tokens of the instruction before a prompt, guessed from its letters: the tokenizer may not be there."""
        text = instruction_text(self.params.text_encoder.instruction, self.params.network.numerics)
        return len(text) // CHARACTERS_PER_TOKEN

    @property
    def null_tokens(self) -> int:
        """Tokens of the empty prompt: BOS alone, or under `nvlabs` as many as the longest prompt has."""
        padded = CONVENTIONS[self.params.network.numerics].null_keeps_caption_mask
        return self.params.text_encoder.max_tokens if padded else 1

    @property
    def null_flops(self) -> int:
        """Operations of encoding the empty prompt, which has no instruction before it."""
        return _text_flops(self.encoders.text_encoder.get_decoder(), self.null_tokens)

    def perplexity_flops(self, text_tokens: int) -> int:
        """Operations of the language model's predictions for one caption."""
        return _text_flops(self.encoders.text_encoder, text_tokens)

    def perplexity_peak(self, captions: int, text_tokens: int) -> int:
        """Memory of the language model's predictions for a batch."""
        return _text_peak(self.encoders.text_encoder, captions, text_tokens)

    def text_encoder_training(self, text_tokens: int) -> TrainingStep:
        """A step of the small text encoder's training."""
        model, head = self.encoders.text_encoder, self.look_back_head
        encoder = EqualPrompts(model, Vocabulary(model.config.vocab_size), PLAIN(text_tokens))
        loss = training_loss(encoder, head, ["any"], self._context)
        return _training_step(lambda: loss(0), nn.ModuleList([model, head]))

    @cached_property
    def look_back_head(self) -> nn.Linear:
        """The head that reads the last tokens in the small text encoder's training."""
        config = self.encoders.text_encoder.config
        return without_data(lambda: nn.Linear(config.hidden_size, LOOK_BACK * config.vocab_size))

    def judge_training(self, prompts: int, text_tokens: int) -> TrainingStep:
        """A step of the judge's training."""
        batch, judge = self.params.judge.batch_size, self.encoders.judge.train()
        others = min(OTHER_PROMPTS, prompts)
        text, mask = self._judge_text(batch + others, text_tokens)
        pictures = self._picture(batch)
        with shapes_alone():
            yes, share = torch.empty(batch, batch + others, dtype=torch.bool), torch.empty(others)

        def loss() -> Tensor:
            with autocast(DEVICE, self.params.compute.dtype):
                logits = judge(pictures, text, mask)
            return judge_loss(logits, yes, share)

        return _training_step(loss, judge)

    def pair_training(self, pairs: int, text_tokens: int) -> TrainingStep:
        """A step of a training on pairs: each picture is asked about two captions for each picture of the batch."""
        network = self.encoders.judge.train()
        text, mask = self._judge_text(2 * pairs, text_tokens)
        pictures = self._picture(pairs)
        with shapes_alone():
            own = torch.empty(pairs, dtype=torch.long)

        def loss() -> Tensor:
            with autocast(DEVICE, self.params.compute.dtype):
                logits = network(pictures, text, mask)
            return sigmoid_loss(logits, own)

        return _training_step(loss, network)

    @cached_property
    def judge_picture_flops(self) -> int:
        """Operations of the judge's reading of one picture."""
        return count_flops(_pass(self.encoders.judge.eval().picture, self._picture()))

    def judge_prompt_flops(self, text_tokens: int) -> int:
        """Operations of the judge's reading of one prompt."""
        return count_flops(_pass(self.encoders.judge.eval().prompt, *self._judge_text(1, text_tokens)))

    def judge_peak(self, pictures: int) -> int:
        """Memory of judging a prompt's pictures."""
        return min(pictures, PICTURES_AT_ONCE) * self._judge_peak

    @cached_property
    def _judge_peak(self) -> int:
        return count_peak_bytes(_pass(self.encoders.judge.eval().picture, self._picture()))

    def _judge_text(self, prompts: int, text_tokens: int) -> tuple[Tensor, Tensor]:
        with shapes_alone():
            text = torch.empty(prompts, text_tokens, self.encoders.caption_channels)
            return text, torch.empty(prompts, text_tokens, dtype=torch.bool)

    @property
    def _size(self) -> int:
        return self.params.shard.image_size

    def _picture(self, pictures: int = 1) -> Tensor:
        with shapes_alone():
            return torch.empty(pictures, 3, self._size, self._size)

    @property
    def _context(self) -> Context:
        return Context(
            "plan", self.params, Path(), Path(), tracker=None, device=DEVICE, threads=1
        )  # losses log nothing


@cache
def _text_flops(model: nn.Module, text_tokens: int) -> int:
    return count_flops(_pass(model, *_tokens(1, text_tokens)))


@cache
def _text_peak(model: nn.Module, prompts: int, text_tokens: int) -> int:
    return count_peak_bytes(_pass(model, *_tokens(prompts, text_tokens)))


def _tokens(prompts: int, text_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask."""
    with shapes_alone():
        ids, mask = (torch.empty(prompts, text_tokens, dtype=torch.long) for _ in range(2))
    return ids, mask


def _pass(module: nn.Module, *inputs: Tensor) -> Callable[[], Any]:
    """A forward pass of `module` without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return module(*inputs)

    return run


def _training_step(loss: Callable[[], Tensor], network: nn.Module) -> TrainingStep:
    saved = count_saved_bytes(loss, [*network.parameters()])
    return TrainingStep(count_flops(lambda: loss().backward()), saved)
