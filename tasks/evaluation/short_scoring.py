"""Draws one picture of each of a few prompts with a network in training, and scores them as the evaluation would.

Drawing and scoring are the evaluation's own (`tasks.evaluation.picture_drawing`, `tasks.evaluation.scorers`). What
differs is the memory, which the state of the training leaves little of: batches are bounded, pictures are decoded one
after another, and the text encoder is dropped as soon as it has read all texts.

Shapes: P prompts, T text tokens, E caption channels, C latent channels, H and W of a latent or picture, B pictures.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from model.autoencoder import load_autoencoder
from model.network import Sana
from model.text_encoder import TextEncoder, load_text_encoder
from tasks.computing import ranks
from tasks.computing.seeds import derive, numpy_generator
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.evaluation_steps import correctness, score_prompts
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts, take_turns
from tasks.evaluation.score_statistics import Score, score
from tasks.evaluation.scorers.scorer_choice import PROMPTS, SUMMARY, open_scorer
from tasks.evaluation.scorers.scorer_interface import Scorer
from tasks.params.experiment_params import Params
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.training.drawing_in_training import OneByOneDecoder, pictures_at_once, uncompiled


def short_choice(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts, or all if there are fewer: as many of each task, and evenly spread over a task's prompts.

    A task that has fewer gives all, and the others more. The choice depends on the prompts and the count alone.
    """
    of_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_task.setdefault(prompt.tag, []).append(prompt)
    turns = take_turns([tag] * len(listed) for tag, listed in of_task.items())
    counts = Counter(islice(turns, count))
    return [listed[i * len(listed) // counts[tag]] for tag, listed in of_task.items() for i in range(counts[tag])]


class KnownTexts:
    """The embeddings of texts that a text encoder has read once; its weights are not kept.

    It takes the place of the text encoder where nothing else is asked for than these texts and the empty prompt.
    """

    def __init__(self, text_encoder: TextEncoder, batches: Sequence[Sequence[str]]) -> None:
        """Read each batch of texts, and the empty prompt. The embeddings are kept in the memory of the CPU."""
        self._null_TE = text_encoder.encode_null().cpu()
        self._embedded: dict[str, Tensor] = {}
        for texts in batches:
            if new := [text for text in dict.fromkeys(texts) if text not in self._embedded]:
                embedded = (text_TE.cpu() for text_TE in text_encoder.encode(new))
                self._embedded |= dict(zip(new, embedded, strict=True))

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text."""
        return max(len(text_TE) for text_TE in (*self._embedded.values(), self._null_TE))

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """The embedding (T_i, E) of each text."""
        return [self._embedded[text] for text in texts]

    def encode_null(self) -> Tensor:
        """The embedding (T, E) of the empty prompt."""
        return self._null_TE


@dataclass(frozen=True)
class TrainingPainter(Painter):
    """Draws with a network in training. Where a GPU has no memory for it, pictures are black and `failed` is not empty.

    So a rank that has no memory goes on to where all ranks meet, and does not keep the others waiting there.
    """

    failed: list[str] = field(default_factory=list)

    def _draw_batch(
        self, rows: Sequence[int], noise_BCHW: Tensor, texts: Sequence[Tensor], null_TE: Tensor
    ) -> Pictures:
        try:
            with uncompiled(self.params.compute.compile):
                return super()._draw_batch(rows, noise_BCHW, texts, null_TE)
        except torch.OutOfMemoryError as error:
            self.failed.append(str(error))
            return np.zeros((len(rows), *self.picture_size, 3), np.uint8)


@dataclass(frozen=True)
class ShortScoring:
    """The prompts, the scorer, and what drawing takes beside the network."""

    prompts: Sequence[Prompt]
    scorer: Scorer
    decoder: OneByOneDecoder
    texts: KnownTexts
    params: Params
    device: str

    def score(self, network: Sana) -> Score | None:
        """The score of a network, the same on all ranks, which all take part; None if a GPU has no memory for it.

        The noise of a picture depends on the seed and the place of its prompt alone.
        """
        painter = self._painter(network)
        seed = derive(self.params.compute.seed, "short evaluation")
        pictures_PNHW3 = painter.draw([prompt.text for prompt in self.prompts], 1, seed, "short evaluation")
        verdicts: list[list[Verdict]] = []
        try:
            verdicts = score_prompts(self.prompts, pictures_PNHW3, self.scorer)
        except torch.OutOfMemoryError as error:
            painter.failed.append(str(error))
        if any(ranks.gather(bool(painter.failed))):
            return None
        tasks, samples = [prompt.tag for prompt in self.prompts], self.params.evaluation.bootstrap_samples
        rng = numpy_generator(self.params.compute.seed, "geneval bootstrap")
        return score(correctness(verdicts), tasks, samples, rng)

    def _painter(self, network: Sana) -> TrainingPainter:
        """A painter with a bounded batch. Its decoder and texts stand in for the autoencoder and the text encoder."""
        painter = TrainingPainter(network, self.decoder, self.texts, self.params, self.device)
        _, height, width = painter.latent_shape
        tokens = height * width // network.config.patch_size**2
        size = pictures_at_once(network.config, tokens, self.texts.longest, self.params.sampling.batch_size)
        sampling = replace(self.params.sampling, batch_size=size)
        return replace(painter, params=replace(self.params, sampling=sampling))


def open_short_scoring(params: Params, count: int, device: str) -> ShortScoring:
    """All that it takes to score `count` prompts of the stage `scorer`.

    Nothing is drawn from torch's own generator, although the networks that are loaded here begin with random weights.
    Raises UserError, ValueError or OSError if an output is missing, broken or does not fit, and OutOfMemoryError.
    """
    made = read_json(paths.SCORER / SUMMARY)["scorer"]
    if made != params.scorer:
        raise UserError(f"{paths.SCORER} is of {made}, and evaluation.scorer asks for {params.scorer}: run scorer")
    gpus = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpus):
        prompts = short_choice(read_prompts(paths.SCORER / PROMPTS), count)
        # The scorer `matching` reads each caption with the captions that it chooses among.
        asked = [[prompt.line["prompt"], *prompt.line.get("others", ())] for prompt in prompts]
        text_encoder = load_text_encoder(paths.TEXT_ENCODER, device)
        texts = KnownTexts(text_encoder, [[prompt.text for prompt in prompts], *asked])
        del text_encoder
        decoder = OneByOneDecoder(load_autoencoder(paths.AUTOENCODER, device))
        return ShortScoring(prompts, open_scorer(params, texts, device), decoder, texts, params, device)
