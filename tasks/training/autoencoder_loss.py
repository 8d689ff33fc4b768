"""The loss of the small autoencoder that is trained here, and on how many pictures it is measured."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from model.autoencoder import Autoencoder
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, generator
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.sample_order import grouped_batch_indices
from tasks.runtime.context import Context

LATENT_NOISE = 0.1
"""Standard deviation of the noise, as a share of the latents' root mean square."""

MEAN_PENALTY = 0.01
"""Weight of the mean square of the channel means, as a share of the latents' mean square."""

SCALE_SAMPLES = 2048
"""Training pictures from whose latents the scaling factor is computed."""

EVALUATION_BATCH = 256
SHOWN_PICTURES = 16


def reconstruction_loss(
    autoencoder: Autoencoder, pictures: PictureDataset, context: Context
) -> Callable[[int], Tensor]:
    """The loss of each step, as `tasks.autoencoder` describes it. It does not change with the scale of the latents."""
    params = context.params
    seed, batch_size = params.compute.seed, params.autoencoder.batch_size
    network, device = autoencoder.network, context.device

    def loss(step: int) -> Tensor:
        indices = grouped_batch_indices(derive(seed, "autoencoder"), step, batch_size, pictures.size_groups)
        target = to_unit_range(pictures.pictures(indices)).to(device, memory_format=torch.channels_last)
        with autocast(device, params.compute.dtype):
            latents = network.encoder(target).float()
            noise = torch.randn(latents.shape, generator=generator(seed, "autoencoder", "noise", step)).to(device)
            power = latents.square().mean()
            decoded = network.decoder(latents + LATENT_NOISE * power.sqrt() * noise).float()
        mean_share = latents.mean(dim=(0, 2, 3)).square().mean() / power
        return mse_loss(decoded, target) + MEAN_PENALTY * mean_share

    return loss
