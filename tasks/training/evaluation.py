"""Held-out loss at fixed noise: the same samples, noise and times for every model, so that models can be compared."""

import numpy as np
import torch

from model.flow_matching import shift
from model.network import Sana
from tasks.data.encoded import EncodedDataset
from tasks.params import Diffusion
from tasks.precision import autocast
from tasks.seeds import generator
from tasks.training.objective import FlowMatchingLoss, NoisedBatch

BATCH = 128


@torch.no_grad()
def heldout_loss(
    network: Sana, dataset: EncodedDataset, diffusion: Diffusion, seed: int, device: str, dtype: str
) -> float:
    """Mean flow-matching loss over the held-out split, with captions, at noise levels spread as training's are.

    Sample i is noised at the i-th quantile of the training times (in a shuffled order), once.
    """
    loss = FlowMatchingLoss(network)
    random = generator(seed, "held-out noise")
    count = len(dataset)
    quantiles = (torch.randperm(count, generator=random) + 0.5) / count
    sigmas = shift(
        torch.sigmoid(diffusion.logit_mean + diffusion.logit_std * torch.special.ndtri(quantiles)), diffusion.flow_shift
    )
    total = 0.0
    for indices in dataset.batches(np.arange(count), BATCH):
        batch = dataset.batch(indices)
        noise = torch.randn(batch.latents_BCHW.shape, generator=random)
        noised = NoisedBatch(batch.latents_BCHW, noise, sigmas[indices], batch.text_BTE, batch.mask_BT)
        with autocast(device, dtype):
            total += loss(noised.part(0, 1, device)).double().sum().item()
    return total / count
