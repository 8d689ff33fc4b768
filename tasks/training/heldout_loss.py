"""Held-out loss at fixed noise: the same samples, noise and times for every model, so that models can be compared."""

import numpy as np
import torch
from torch import nn

from model.flow_matching import shift
from tasks.computing import ranks
from tasks.computing.precision import autocast
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network import Diffusion
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch

BATCH = 128


@torch.no_grad()
def heldout_loss(
    network: nn.Module, dataset: EncodedDataset, diffusion: Diffusion, seed: int, device: str, dtype: str
) -> float:
    """Mean flow-matching loss over the held-out split, with captions, at noise levels spread as training's are.

    Sample i is noised at the i-th quantile of the training times (in a shuffled order), once. `network` is a Sana, or a
    FlowMatchingLoss of one whose parameters are sharded. Ranks take whole batches in turn, so that the loss is the same
    number on any number of them.
    """
    loss = network if isinstance(network, FlowMatchingLoss) else FlowMatchingLoss(network)
    random = generator(seed, "held-out noise")
    count = len(dataset)
    quantiles = (torch.randperm(count, generator=random) + 0.5) / count
    sigmas = shift(
        torch.sigmoid(diffusion.logit_mean + diffusion.logit_std * torch.special.ndtri(quantiles)), diffusion.flow_shift
    )
    total, batches = 0.0, list(dataset.batches(np.arange(count), BATCH))
    for start in range(0, len(batches), ranks.world_size()):
        turn = batches[start : start + ranks.world_size()]
        noises = [
            torch.randn((len(one), *dataset.batch(one[:1]).latents_BCHW.shape[1:]), generator=random) for one in turn
        ]
        own = min(ranks.rank(), len(turn) - 1)  # who has none left repeats another's, as shards compute together
        batch = dataset.batch(turn[own])
        noised = NoisedBatch(batch.latents_BCHW, noises[own], sigmas[turn[own]], batch.text_BTE, batch.mask_BT)
        with autocast(device, dtype):
            value = loss(noised.part(0, 1, device)).double().sum().item()
        for one in ranks.gather(value)[: len(turn)]:
            total += one
    return total / count
