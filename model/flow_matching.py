"""Flow matching as SANA trains it: a straight path from latent to noise with a shifted schedule (SANA section 2.4).

x_sigma = (1 - sigma) * latent + sigma * noise, and the network predicts the velocity noise - latent.

The published code draws one of 1000 discrete times. Here the time is continuous, so that training agrees with the grids
of the solvers, and a small model sees every time.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Levels = TypeVar("Levels", float, NDArray[np.float64], Tensor)

TIMESTEPS = 1000.0  # the network is told sigma times this number


def shift(sigma: Levels, s: float) -> Levels:
    """The shifted schedule s*sigma / (1 + (s-1)*sigma). With s > 1 more of the path is spent at high noise."""
    return s * sigma / (1 + (s - 1) * sigma)


def training_sigmas(normal_B: Tensor, logit_mean: float, logit_std: float, flow_shift: float) -> Tensor:
    """Noise levels (B,) for training from standard normal numbers (B,): logit-normal, then shifted by `flow_shift`."""
    return shift(torch.sigmoid(logit_mean + logit_std * normal_B), flow_shift)


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The points (B, C, H, W) at `sigma_B` on the path from latent (sigma 0) to noise (sigma 1)."""
    sigma = sigma_B[:, None, None, None]
    return (1 - sigma) * latents_BCHW + sigma * noise_BCHW


def velocity(latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """The target that the network is trained to predict: noise - latent, the derivative of the path by sigma."""
    return noise_BCHW - latents_BCHW
