"""Held-out loss at fixed noise: the same samples, noise and times for every model, so that models can be compared."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import nn

from model.flow_matching import shift
from tasks.computing import ranks
from tasks.computing.normal_interval import NORMAL_95
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, generator, row_generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network_params import Diffusion
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, normal_numbers

HELDOUT_BATCH = 128
"""Samples of a forward pass."""


@dataclass(frozen=True)
class HeldoutLoss:
    """The mean loss over the held-out samples, with its 95 % interval over samples.

    The interval says how far the mean depends on which samples were held out. Two models have the same samples and
    noise, so their difference is known better than their intervals suggest.
    """

    value: float
    low: float
    high: float


@torch.no_grad()
def heldout_loss(
    network: nn.Module, dataset: EncodedDataset, diffusion: Diffusion, seed: int, device: str, dtype: str
) -> HeldoutLoss:
    """Mean flow-matching loss over the held-out split, with captions, at noise levels distributed as in training.

    Each sample is noised once. The noise levels of all samples are the evenly spaced quantiles of the training times,
    in a shuffled order. `network` is a Sana, or a FlowMatchingLoss around a Sana whose parameters are sharded. Ranks
    take whole batches in turn, so the loss is the same number for any number of ranks.
    """
    loss = network if isinstance(network, FlowMatchingLoss) else FlowMatchingLoss(network)
    count, noise_seed = len(dataset), derive(seed, "held-out noise")
    quantiles = (torch.randperm(count, generator=generator(seed, "held-out times")) + 0.5) / count
    sigmas = shift(
        torch.sigmoid(diffusion.logit_mean + diffusion.logit_std * torch.special.ndtri(quantiles)), diffusion.flow_shift
    )
    total, squares, batches = 0.0, 0.0, list(dataset.batches(np.arange(count), HELDOUT_BATCH))
    for start in range(0, len(batches), ranks.world_size()):
        turn = batches[start : start + ranks.world_size()]
        # A rank without a batch left repeats the last one: a pass of sharded parameters needs every rank.
        rows = turn[min(ranks.rank(), len(turn) - 1)]
        batch = dataset.batch(rows)
        random_B = [row_generator(noise_seed, 0, int(row)) for row in rows]
        noise_BCHW = normal_numbers(random_B, batch.latents_BCHW.shape[1:])
        noised = NoisedBatch(batch.latents_BCHW, noise_BCHW, sigmas[rows], batch.text_BTE, batch.mask_BT)
        with autocast(device, dtype):
            losses_B = loss(noised.part(0, 1, device)).double()
        for summed, squared in ranks.gather([losses_B.sum().item(), losses_B.square().sum().item()])[: len(turn)]:
            total, squares = total + summed, squares + squared
    mean = total / count
    variance = max(squares / count - mean**2, 0.0) * count / max(count - 1, 1)
    half_width = NORMAL_95 * sqrt(variance / count)
    return HeldoutLoss(mean, mean - half_width, mean + half_width)
