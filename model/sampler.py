"""Flow-Euler and Flow-DPM-Solver++ 2M with classifier-free guidance (SANA section 3.2, algorithm 1).

The grids of noise levels are those of diffusers' `FlowMatchEulerDiscreteScheduler`, which the published code uses too,
and of its `DPMSolverMultistepScheduler`, with which the published code agrees.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.flow_matching import TIMESTEPS, shift
from model.network import Sana, TextContext, concatenate
from model.numerics import Numerics

SamplerName = Literal["flow_dpm-solver", "flow_euler"]
SIGMA_STEP = 1 / TIMESTEPS
"""The smallest noise level of the published schedule of 1000 levels.

DPM-Solver++ starts so far below pure noise, where log((1 - sigma) / sigma) is finite. Euler's last evaluation is at
this level after it has been shifted twice: once by itself, and once with the grid.
"""


@dataclass(frozen=True)
class Grid:
    """The noise levels that a solver passes.

    `sigmas` go from noise down to 0. `timesteps` has the time that the network is told at each of them but 0.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]


Velocity = Callable[[Tensor, float], Tensor]
"""A function of latents and the network's time that returns the velocity there."""


def solver_grid(sampler: SamplerName, steps: int, flow_shift: float, numerics: Numerics) -> Grid:
    """The grid of `steps` evaluations, computed in float64 (diffusers computes it in float32).

    In diffusers DPM-Solver++ tells the network whole timesteps, and Euler does not. Under `nvlabs` the network itself
    cuts the decimals off.
    """
    if sampler == "flow_euler":
        levels = shift(np.linspace(1.0, shift(SIGMA_STEP, flow_shift), steps), flow_shift)
    else:
        # diffusers takes 1 - x of a grid from 1 down. The order of operations matters: where a timestep falls on a
        # whole number, rounding decides what `trunc` gives. The last level, sigma 0, is left out and added below.
        levels = shift(1.0 - np.linspace(1.0, SIGMA_STEP, steps + 1), flow_shift)[:0:-1]
    timesteps = levels * TIMESTEPS
    if sampler == "flow_dpm-solver" and numerics == "diffusers":
        timesteps = np.trunc(timesteps)
    return Grid((*levels.tolist(), 0.0), tuple(timesteps.tolist()))


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
    """Latents (B, C, H, W), float32, drawn from noise.

    `null` holds the empty caption for each row; with `guidance` 1 it is not used. Raises ValueError if the network's
    convention reads the empty caption at tokens that `null` does not have.
    """
    predict = _guided(network, text, null, guidance)
    grid = solver_grid(sampler, steps, flow_shift, network.config.numerics)
    solve = _euler if sampler == "flow_euler" else _dpm_solver_2m
    # Latents are float32 whatever the weights are: a solver adds up many small steps.
    return solve(predict, noise_BCHW.float(), grid)


def _guided(network: Sana, text: TextContext, null: TextContext, guidance: float) -> Velocity:
    """A function that predicts v_null + guidance * (v_text - v_null), with both branches in one batch."""
    if guidance != 1 and network.config.convention.null_keeps_caption_mask:
        null = null.under_mask(text.mask_BT)
    both = concatenate(text, null) if guidance != 1 else text

    def predict(x_BCHW: Tensor, timestep: float) -> Tensor:
        """The guided velocity (B, C, H, W), float32."""
        x = torch.cat([x_BCHW, x_BCHW]) if guidance != 1 else x_BCHW
        v = network(x, torch.full((len(x),), timestep, device=x.device), both).float()
        if guidance == 1:
            return v
        v_text, v_null = v.chunk(2)
        return v_null + guidance * (v_text - v_null)

    return predict


def _euler(predict: Velocity, x: Tensor, grid: Grid) -> Tensor:
    """First-order steps along the velocity."""
    for (sigma, following), timestep in zip(pairwise(grid.sigmas), grid.timesteps, strict=True):
        x = x + (following - sigma) * predict(x, timestep)
    return x


def _dpm_solver_2m(predict: Velocity, x: Tensor, grid: Grid) -> Tensor:
    """DPM-Solver++ 2M on the predicted latent x - sigma*v, with alpha = 1 - sigma and lambda = log(alpha/sigma).

    The first step and the last are of first order. The last step goes to sigma 0, and so returns the predicted latent.
    """
    previous: Tensor | None = None
    log_ratio = [_lambda(sigma) for sigma in grid.sigmas[:-1]]
    for i, (sigma, following) in enumerate(pairwise(grid.sigmas)):
        latent = x - sigma * predict(x, grid.timesteps[i])
        if following == 0:
            return latent  # the log ratio of sigma 0 would be infinite
        direction = latent
        step = log_ratio[i + 1] - log_ratio[i]
        if previous is not None:
            ratio = (log_ratio[i] - log_ratio[i - 1]) / step
            direction = latent + (latent - previous) / (2 * ratio)
        # `expm1` keeps the digits of small steps.
        x = (following / sigma) * x + (1 - following) * -math.expm1(-step) * direction
        previous = latent
    # `solver_grid` always ends at 0; this is for a grid that somebody makes by hand.
    raise ValueError("the grid of noise levels must end at 0")


def _lambda(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio, log(alpha / sigma)."""
    return math.log1p(-sigma) - math.log(sigma)
