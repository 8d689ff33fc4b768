"""Flow-Euler and Flow-DPM-Solver++ 2M with classifier-free guidance (SANA section 3.2, algorithm 1)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from model.flow_matching import TIMESTEPS, shift
from model.network import Sana, TextContext, concatenate

SamplerName = Literal["flow_dpm-solver", "flow_euler"]
SIGMA_MAX = 0.999  # DPM-Solver++ starts just below pure noise, where log((1 - sigma)/sigma) is finite

Velocity = Callable[[Tensor, float], Tensor]


def sigmas(sampler: SamplerName, steps: int, flow_shift: float) -> Tensor:
    """The solver's grid of noise levels (steps + 1,), from noise down to 0, in float64."""
    start = 1.0 if sampler == "flow_euler" else SIGMA_MAX
    return shift(torch.linspace(start, 0.0, steps + 1, dtype=torch.float64), flow_shift)


@torch.no_grad()
def sample(
    network: Sana,
    noise_BCHW: Tensor,
    text: TextContext,
    null: TextContext,
    *,
    sampler: SamplerName,
    steps: int,
    guidance: float,
    flow_shift: float,
) -> Tensor:
    """Latents (B, C, H, W) from noise. `null` holds the empty caption for each row; `guidance` 1 leaves it out."""
    predict = _guided(network, text, null, guidance)
    grid = sigmas(sampler, steps, flow_shift).tolist()
    solve = _euler if sampler == "flow_euler" else _dpm_solver_2m
    return solve(predict, noise_BCHW.float(), grid)


def _guided(network: Sana, text: TextContext, null: TextContext, guidance: float) -> Velocity:
    """The velocity v_null + guidance * (v_text - v_null), both branches in one batch."""
    both = concatenate(text, null) if guidance != 1 else text

    def predict(x_BCHW: Tensor, sigma: float) -> Tensor:
        x = torch.cat([x_BCHW, x_BCHW]) if guidance != 1 else x_BCHW
        v = network(x, torch.full((len(x),), sigma * TIMESTEPS, device=x.device), both).float()
        if guidance == 1:
            return v
        v_text, v_null = v.chunk(2)
        return v_null + guidance * (v_text - v_null)

    return predict


def _euler(predict: Velocity, x: Tensor, grid: list[float]) -> Tensor:
    """First-order steps along the velocity."""
    for sigma, following in pairwise(grid):
        x = x + (following - sigma) * predict(x, sigma)
    return x


def _dpm_solver_2m(predict: Velocity, x: Tensor, grid: list[float]) -> Tensor:
    """DPM-Solver++ 2M on the predicted latent x - sigma*v, with alpha = 1 - sigma and lambda = log(alpha/sigma).

    The first and last steps are first order; the last one, to sigma 0, returns the predicted latent itself.
    """
    previous: Tensor | None = None
    log_ratio = [_lambda(sigma) for sigma in grid[:-1]]
    for i, (sigma, following) in enumerate(pairwise(grid)):
        latent = x - sigma * predict(x, sigma)
        if following == 0:
            return latent
        direction = latent
        step = log_ratio[i + 1] - log_ratio[i]
        if previous is not None:
            ratio = (log_ratio[i] - log_ratio[i - 1]) / step
            direction = latent + (latent - previous) / (2 * ratio)
        x = (following / sigma) * x + (1 - following) * -math.expm1(-step) * direction
        previous = latent
    raise ValueError("the grid of noise levels must end at 0")


def _lambda(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio, log(alpha / sigma)."""
    return math.log1p(-sigma) - math.log(sigma)
