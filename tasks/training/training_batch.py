"""A training batch and its flow-matching loss. The loss is a module, so that autocast and DDP can wrap all of it.

Shapes: B samples, C latent channels, H and W of a latent, T text tokens, E caption channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.flow_matching import TIMESTEPS, add_noise, training_sigmas, velocity
from model.network import Sana
from model.numerics import Numerics
from tasks.computing.seeds import derive, row_generator
from tasks.data.encoded_samples import EncodedDataset, StoredBatch
from tasks.data.sample_order import sharded_batch_indices
from tasks.params.network_params import Diffusion
from tasks.training.caption_dropout import drop_captions, read_lengths


@dataclass(frozen=True)
class NoisedBatch:
    """Samples, their noise, and their noise levels `sigma_B` in (0, 1). The mask is true where there is text."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    text_BTE: Tensor
    mask_BT: Tensor

    def to(self, device: str) -> "NoisedBatch":
        """The batch on `device`."""
        return NoisedBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class FlowMatchingLoss(nn.Module):
    """The mean squared error of the predicted velocity (SANA section 2.4), without a weighting over times."""

    def __init__(self, network: Sana) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: NoisedBatch) -> Tensor:
        """Loss of each sample (B,)."""
        predicted = predicted_velocity(self.network, batch)
        error = F.mse_loss(predicted.float(), velocity(batch.latents_BCHW, batch.noise_BCHW), reduction="none")
        return error.mean(dim=(1, 2, 3))


def predicted_velocity(network: Sana, batch: NoisedBatch) -> Tensor:
    """The velocity (B, C, H, W) that a network predicts for a batch."""
    text = network.embed_text(batch.text_BTE, batch.mask_BT)
    noised_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.sigma_B)
    return network(noised_BCHW, batch.sigma_B * TIMESTEPS, text)


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage's training batches. It depends on the experiment's seed and on the whole name of the stage.

    Without the name, `train` would see the batches of `pretrain` once more, with the same noise, and each fine-tune the
    same first batches again. The name includes the item: `finetune@6` and `finetune@4` see different batches, so that a
    lucky order of samples does not favour or harm all cuts at once.
    """
    return derive(seed, stage, "batches")


class DrawnBatch(NamedTuple):
    """Rows of a training batch as a worker process hands them over, with the numbers that were drawn for each.

    The samples are as they are stored; noise and noise levels `sigma_B` are float32. The captions of the
    rows in `dropped` are dropped on the device.
    """

    stored: StoredBatch
    noise_BCHW: Tensor
    sigma_B: Tensor
    dropped: list[bool]

    def noised(self, null_TE: Tensor, numerics: Numerics, device: str = "cpu") -> NoisedBatch:
        """The batch on `device`, where the empty prompt `null_TE` already is: in float32, texts padded to the longest.

        What a dropped caption leaves behind the longest text is cut off. So the products of a micro-batch have the
        same shapes, and round alike, whichever process works on its rows. Raises UserError as `drop_captions` does.
        """
        batch = self.stored.padded(device)
        noise_BCHW, sigma_B = (tensor.to(device, non_blocking=True) for tensor in (self.noise_BCHW, self.sigma_B))
        dropped_B = torch.tensor(self.dropped).to(device, non_blocking=True)
        text_BTE, mask_BT = drop_captions(batch, null_TE, dropped_B, numerics)
        # The host knows the lengths, so this does not wait for the device.
        longest = max(read_lengths(self.stored.lengths, self.dropped, len(null_TE), numerics))
        text_BTE, mask_BT = (text[:, :longest].contiguous() for text in (text_BTE, mask_BT))
        return NoisedBatch(batch.latents_BCHW, noise_BCHW, sigma_B, text_BTE, mask_BT)


def draw_batch(
    dataset: EncodedDataset, diffusion: Diffusion, seed: int, step: int, size: int, rows: np.ndarray
) -> DrawnBatch:
    """`rows` of the batch of one optimizer step, which has `size` samples: a pure function of (seed, step).

    `seed` is the training's own (`stage_seed`), so two stages see other samples in another order, with other noise.

    Only the samples of these rows are read, and only their numbers drawn. They are the same whatever the other rows.
    """
    random_B = [row_generator(seed, step, int(row)) for row in rows]
    # A sample comes once in an epoch, so each epoch draws its caption anew.
    captions_B = np.array([random.random() for random in random_B]) if dataset.several_captions else None
    stored = dataset.stored(sharded_batch_indices(seed, step, size, dataset.sharded_groups)[rows], captions_B)
    normal_B = normal_numbers(random_B, ())
    sigma_B = training_sigmas(normal_B, diffusion.logit_mean, diffusion.logit_std, diffusion.flow_shift)
    dropped = [random.random() < diffusion.caption_dropout for random in random_B]
    return DrawnBatch(stored, normal_numbers(random_B, stored.latents_BCHW.shape[1:]), sigma_B, dropped)


def training_batch(
    dataset: EncodedDataset,
    diffusion: Diffusion,
    numerics: Numerics,
    seed: int,
    step: int,
    size: int,
    rows: np.ndarray | None = None,
) -> NoisedBatch:
    """The batch of `draw_batch` on the CPU as the network takes it; without `rows` it has all of them."""
    rows = np.arange(size) if rows is None else rows
    return draw_batch(dataset, diffusion, seed, step, size, rows).noised(dataset.null_text, numerics)


def normal_numbers(random_B: Sequence[np.random.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers in float32, a tensor of `shape` from each generator (B, ...)."""
    return torch.from_numpy(np.stack([random.standard_normal(tuple(shape), np.float32) for random in random_B]))
