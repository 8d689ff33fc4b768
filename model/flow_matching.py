"""Flow matching as SANA trains it: a straight path from latent to noise with a shifted schedule (SANA section 2.4).

x_sigma = (1 - sigma) * latent + sigma * noise, and the network predicts the velocity noise - latent.

Difference from the published code: it draws one of 1000 discrete times; here the time is continuous, so that training
and the solvers' grids agree and a small model sees every time.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Levels = TypeVar("Levels", float, NDArray[np.float64], Tensor)

TIMESTEPS = 1000.0  # the network reads sigma times this


def shift(sigma: Levels, s: float) -> Levels:
    """The shifted schedule s*sigma / (1 + (s-1)*sigma): more of the path is spent at high noise for s > 1."""
    return s * sigma / (1 + (s - 1) * sigma)


def draw_sigmas(
    count: int, logit_mean: float, logit_std: float, flow_shift: float, generator: torch.Generator
) -> Tensor:
    """Training noise levels (count,): logit-normal, then shifted."""
    normal = torch.randn(count, generator=generator)
    return shift(torch.sigmoid(logit_mean + logit_std * normal), flow_shift)


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The point at `sigma` on the path from latent (0) to noise (1)."""
    sigma = sigma_B[:, None, None, None]
    return (1 - sigma) * latents_BCHW + sigma * noise_BCHW


def velocity(latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """The regression target noise - latent, the path's derivative in sigma."""
    return noise_BCHW - latents_BCHW
