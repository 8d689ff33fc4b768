"""The CAME update (Luo et al. 2023, algorithm 2) of tensors of one shape; nothing is known here but the arguments.

With gradient g, means over the entries of a row or column, b the betas and e the epsilons:

    matrix:  R, C <- ema(row and column means of g^2 + e1; b2);    u = g / sqrt(R / mean(R) * C)
    other:   V    <- ema(g^2 + e1; b2);                            u = g / sqrt(V)
             u    <- u / max(1, rms(u))
             m    <- ema(u; b1)
    matrix:  S, D <- ema(row and column means of (u - m)^2 + e2; b3);   step = m / sqrt(S / mean(S) * D)
    other:                                                              step = m

There is no bias correction. All tensors are float32. Their first dimension, K, counts parameters, each of which gets
what it would get alone: stacking them only saves calls. Shapes: O outputs, I inputs, N entries.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Betas = tuple[float, float, float]
Epsilons = tuple[float, float]


class FactoredMean(NamedTuple):
    """Running means of squares of matrices, by row and by column."""

    row_KO: Tensor
    column_KI: Tensor

    def follow(self, squares_KOI: Tensor, floor: float, beta: float) -> None:
        """Move towards the means of `squares_KOI + floor`, in place."""
        self.row_KO.lerp_(squares_KOI.mean(2).add_(floor), 1 - beta)
        self.column_KI.lerp_(squares_KOI.mean(1).add_(floor), 1 - beta)

    def normalize(self, values_KOI: Tensor, row_mean_K1: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """`values_KOI` over the root of the rank-one estimate row * column / mean(row), in `out` or a new tensor.

        `row_mean_K1` is the mean over all rows, where these are not all.
        """
        if row_mean_K1 is None:
            row_mean_K1 = self.row_KO.mean(1, keepdim=True)
        row_KO = (self.row_KO / row_mean_K1).rsqrt_()
        return torch.mul(values_KOI, row_KO[:, :, None], out=out).mul_(self.column_KI.rsqrt()[:, None, :])


def update_matrices(
    gradient_KOI: Tensor,
    momentum_KOI: Tensor,
    square: FactoredMean,
    instability: FactoredMean,
    betas: Betas,
    epsilons: Epsilons,
) -> Tensor:
    """The steps (K, O, I) of matrices, to be scaled by the learning rate and subtracted.

    `momentum_KOI`, `square` and `instability` move in place.
    """
    square.follow(gradient_KOI * gradient_KOI, epsilons[0], betas[1])
    update_KOI = square.normalize(gradient_KOI)
    _clip(update_KOI.flatten(1))
    momentum_KOI.lerp_(update_KOI, 1 - betas[0])
    surprise_KOI = update_KOI.sub_(momentum_KOI)
    instability.follow(surprise_KOI.mul_(surprise_KOI), epsilons[1], betas[2])
    return instability.normalize(momentum_KOI, out=surprise_KOI)


def update_others(
    gradient_KN: Tensor, momentum_KN: Tensor, square_KN: Tensor, betas: Betas, epsilons: Epsilons
) -> None:
    """The update of all that is no matrix: biases, norms, depth-wise convolutions. The step is the momentum.

    `momentum_KN` and `square_KN` move in place.
    """
    square_KN.lerp_((gradient_KN * gradient_KN).add_(epsilons[0]), 1 - betas[1])
    update_KN = square_KN.rsqrt().mul_(gradient_KN)
    _clip(update_KN)
    momentum_KN.lerp_(update_KN, 1 - betas[0])


def _clip(update_KN: Tensor) -> None:
    """Scale each row whose root mean square is above 1 down to 1, in place; a NaN stays."""
    norm_K1 = torch.linalg.vector_norm(update_KN, dim=1, keepdim=True)
    update_KN.mul_((math.sqrt(update_KN.shape[1]) / norm_K1).clamp_(max=1.0))
