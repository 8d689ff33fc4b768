"""Held-out loss at fixed noise: the same samples, noise and times for every model, so that models can be compared."""

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
import torch
from torch import nn

from model.flow_matching import shift
from model.network import NetworkConfig
from tasks.computing import ranks
from tasks.computing.normal_interval import NORMAL_95
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, generator, row_generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network_params import Diffusion
from tasks.system.errors import UserError
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, normal_numbers

HELDOUT_BATCH = 128
"""Samples of a forward pass, if their activations are within `HELDOUT_BYTES`."""
HELDOUT_BYTES = 4 * 2**30
"""Bytes that a forward pass may take beside the weights and autocast's copies of them.

Beside the 4.8B in bfloat16 and its optimizer's state (14.3 GB) this leaves room on a GPU of 24 GB.
"""


@dataclass(frozen=True)
class HeldoutLoss:
    """The mean loss over the held-out samples, with its 95 % interval over samples.

    The interval says how far the mean depends on which samples were held out. Two models have the same samples and
    noise, so their difference is known better than their intervals suggest.
    """

    value: float
    low: float
    high: float


def heldout_batch_size(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """Samples of a forward pass, at latents of `tokens` and texts of `text_tokens` tokens.

    An upper bound on what lives at once is kept within `HELDOUT_BYTES`. The bound is taken in float32, so that the
    number is the same in every precision and on every device. For each token of the latent it counts the Mix-FFN's
    values before and behind SiLU and behind the convolution, and the stream beside them. It counts the probabilities of
    attention to the text. For each token of the text it counts the encoder's states, the embedded text, and the keys
    and values of one block.
    """
    hidden, inner = config.hidden_size, int(config.mlp_ratio * config.hidden_size)
    latent = tokens * (8 * inner + 8 * hidden)
    probabilities = 2 * tokens * text_tokens * config.cross_heads
    text = text_tokens * (2 * config.caption_channels + 6 * hidden)
    return max(1, min(HELDOUT_BATCH, HELDOUT_BYTES // (4 * (latent + probabilities + text))))


@torch.no_grad()
def heldout_loss(
    network: nn.Module, dataset: EncodedDataset, diffusion: Diffusion, seed: int, device: str, dtype: str
) -> HeldoutLoss:
    """Mean flow-matching loss over the held-out split, with captions, at noise levels distributed as in training.

    Each sample is noised once. The noise levels of all samples are the evenly spaced quantiles of the training times,
    in a shuffled order. A batch has as many samples as `heldout_batch_size` allows for the largest latent and the
    longest text of the split. `network` is a Sana, or a FlowMatchingLoss around a Sana whose parameters are sharded.
    Ranks take whole batches in turn, so the loss is the same number for any number of ranks.

    Raises UserError that names the samples if one of them, or its loss, is not finite.
    """
    loss = network if isinstance(network, FlowMatchingLoss) else FlowMatchingLoss(network)
    count, noise_seed = len(dataset), derive(seed, "held-out noise")
    quantiles = (torch.randperm(count, generator=generator(seed, "held-out times")) + 0.5) / count
    sigmas = shift(
        torch.sigmoid(diffusion.logit_mean + diffusion.logit_std * torch.special.ndtri(quantiles)), diffusion.flow_shift
    )
    size = heldout_batch_size(loss.network.config, _most_tokens(loss.network.config, dataset), dataset.longest_text)
    total, squares, batches = 0.0, 0.0, list(dataset.batches(np.arange(count), size))
    for start in range(0, len(batches), ranks.world_size()):
        turn = batches[start : start + ranks.world_size()]
        # A rank without a batch left repeats the last one: a pass of sharded parameters needs every rank.
        rows = turn[min(ranks.rank(), len(turn) - 1)]
        batch = dataset.batch(rows)
        random_B = [row_generator(noise_seed, 0, int(row)) for row in rows]
        noise_BCHW = normal_numbers(random_B, batch.latents_BCHW.shape[1:])
        noised = NoisedBatch(batch.latents_BCHW, noise_BCHW, sigmas[rows], batch.text_BTE, batch.mask_BT)
        with autocast(device, dtype):
            losses_B = loss(noised.to(device)).double()
        for summed, squared in ranks.gather([losses_B.sum().item(), losses_B.square().sum().item()])[: len(turn)]:
            total, squares = total + summed, squares + squared
        if not isfinite(total):  # so it is on all ranks, which therefore all gather here
            raise _not_finite(dataset, rows[~losses_B.isfinite().cpu().numpy()].tolist())
    mean = total / count
    variance = max(squares / count - mean**2, 0.0) * count / max(count - 1, 1)
    half_width = NORMAL_95 * sqrt(variance / count)
    return HeldoutLoss(mean, mean - half_width, mean + half_width)


def _not_finite(dataset: EncodedDataset, rows: list[int]) -> UserError:
    """What to say of samples whose loss is not finite; `rows` are those of this rank. All ranks must call it.

    The numbers of samples and weights were finite when they were read.
    """
    broken = sorted({row for found in ranks.gather(rows) for row in found})
    first = dataset.place(broken[0]) if broken else "a batch of held-out samples"
    others = f" ({len(broken)} samples of its batch have such a loss)" if len(broken) > 1 else ""
    return UserError(
        f"{first} has a held-out loss that is not finite{others}, though its numbers are: the network's values become "
        "too large; train it again with a lower learning rate, or with compute.dtype float32"
    )


def _most_tokens(config: NetworkConfig, dataset: EncodedDataset) -> int:
    """Tokens of the largest latent of a split."""
    areas = [dataset.batch(group[:1]).latents_BCHW[0, 0].numel() for group in dataset.shape_groups]
    return max(areas) // config.patch_size**2
