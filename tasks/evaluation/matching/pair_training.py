"""Training of a network of the judge's class on pairs: which caption belongs to which picture.

The loss is the sigmoid loss of SigLIP (Zhai et al. 2023, equation 1): each picture of a batch with each caption of the
batch is a yes or a no by itself. Here we leave it in one point: each picture brings a second caption, which shares a
word with its own, since captions of a small batch differ too much to teach reading.

Shapes: B pairs of a batch; the first B captions are their own, the other B share a word with them.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.text_encoder import TextEncoder, pad
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import to_unit_range
from tasks.data.sample_order import batch_indices
from tasks.evaluation.judges.judge_network import JudgeNetwork
from tasks.evaluation.judges.judge_training import descend
from tasks.evaluation.matching.caption_pairs import Pairs

LARGEST_SHIFT = 1 / 8
"""A picture is shifted by up to this share of its side, so that few pictures are not learnt by heart."""


class Steps(Protocol):
    """The settings of a training: the sections `judge` and `matching` have them."""

    steps: int
    batch_size: int
    learning_rate: float


def train_on_pairs(
    network: JudgeNetwork, pairs: Pairs, text_encoder: TextEncoder, training: Steps, seed: int, dtype: str, section: str
) -> list[dict[str, float]]:
    """Train the network in place; returns rows of step and loss. `section` of params names streams and errors.

    Raises UserError at the first loss or gradient that is not finite, before its update.
    """
    device = next(network.parameters()).device

    def loss(step: int) -> Tensor:
        rng = numpy_generator(seed, section, "pairs of a step", step)
        rows = batch_indices(derive(seed, section, "pairs"), step, min(training.batch_size, len(pairs)), len(pairs))
        captions = [*(pairs.captions[row] for row in rows), *pairs.other_captions(rows, rng)]
        different = list(dict.fromkeys(captions))
        pictures_BHW3 = shifted(pairs.pictures_QHW3[rows], rng)
        text_LTE, mask_LT = pad(text_encoder.encode(different))
        with autocast(device.type, dtype):
            logits_BL = network(to_unit_range(pictures_BHW3).to(device), text_LTE.to(device), mask_LT.to(device))
        own_B = torch.tensor([different.index(captions[place]) for place in range(len(rows))], device=device)
        return sigmoid_loss(logits_BL, own_B)

    return descend(network, loss, training.steps, training.learning_rate, section)


def sigmoid_loss(logits_BL: Tensor, own_B: Tensor) -> Tensor:
    """The sum over the captions of each picture's cross-entropy of yes or no, averaged over pictures."""
    yes_BL = F.one_hot(own_B, logits_BL.shape[1]).to(logits_BL)
    return F.binary_cross_entropy_with_logits(logits_BL, yes_BL, reduction="none").sum(dim=1).mean()


def shifted(pictures_BHW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The pictures, each moved by up to `LARGEST_SHIFT` of its side; its edge is repeated where it left."""
    height, width = pictures_BHW3.shape[1:3]
    down, right = round(height * LARGEST_SHIFT), round(width * LARGEST_SHIFT)
    padded = np.pad(pictures_BHW3, ((0, 0), (down, down), (right, right), (0, 0)), mode="edge")
    places = rng.integers(0, (2 * down + 1, 2 * right + 1), size=(len(pictures_BHW3), 2))
    return np.stack([picture[y : y + height, x : x + width] for picture, (y, x) in zip(padded, places, strict=True)])
