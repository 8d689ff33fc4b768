"""The CAME update (Luo et al. 2023, algorithm 2) of tensors of one shape, as functions of their arguments alone.

With g the gradient, b the betas, e the epsilons, and means taken over the entries of a row or a column:

    matrix:  R, C <- ema(row and column means of g^2 + e1; b2);    u = g / sqrt(R / mean(R) * C)
    other:   V    <- ema(g^2 + e1; b2);                            u = g / sqrt(V)
             u    <- u / max(1, rms(u))
             m    <- ema(u; b1)
    matrix:  S, D <- ema(row and column means of (u - m)^2 + e2; b3);   step = m / sqrt(S / mean(S) * D)
    other:                                                              step = m

As published there is no bias correction. The means begin at 0, so after n updates they are only 1 - b^n of what they
average. So the first steps of a matrix are too long, the n-th by (1 - b1^n) / sqrt(1 - b3^n) against the corrected one:
10 times at first, 21 times at the tenth and 14 times at the fiftieth. `Corrections` removes this. It is ours and not
the paper's: R, C, V, S and D above are divided by 1 - b^n where they are read, and so is m in the step. The surprise
u - m is left as it is, since u - m / (1 - b1) would be 0 at first.

All tensors are float32. Their first dimension, K, counts parameters; each parameter gets the update that it would get
alone, so stacking them only saves calls. Shapes: O outputs, I inputs, N entries.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Betas = tuple[float, float, float]
Epsilons = tuple[float, float]

# SANA-1.5 trains with these; they are also those of the CAME paper.
BETAS: Betas = (0.9, 0.999, 0.9999)
EPSILONS: Epsilons = (1e-30, 1e-16)


class Corrections(NamedTuple):
    """What the running means are divided by where they are read. 1 divides nothing: no bias correction."""

    momentum: float = 1.0
    square: float = 1.0
    instability: float = 1.0

    @classmethod
    def after(cls, updates: int, betas: Betas) -> "Corrections":
        """The shares 1 - beta^n that the means hold after `updates` updates, the one that is being made included."""
        return cls(*(1 - beta**updates for beta in betas))

    @property
    def step(self) -> float:
        """What the instability is divided by so that a step is that of the corrected momentum, too."""
        return self.instability / self.momentum**2


NO_CORRECTIONS = Corrections()


class FactoredMean(NamedTuple):
    """Running means of the squares of K matrices: of each row (K, O) and of each column (K, I)."""

    row_KO: Tensor
    column_KI: Tensor

    def follow(self, squares_KOI: Tensor, floor: float, beta: float) -> None:
        """Move towards the means of `squares_KOI + floor`, in place."""
        self.row_KO.lerp_(squares_KOI.mean(2).add_(floor), 1 - beta)
        self.column_KI.lerp_(squares_KOI.mean(1).add_(floor), 1 - beta)

    def row_mean(self) -> Tensor:
        """The mean over all rows (K, 1), where all rows are here."""
        return self.row_KO.mean(1, keepdim=True)

    def normalize(
        self, values_KOI: Tensor, row_mean_K1: Tensor, correction: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """`values_KOI` divided by the root of the estimate row * column / mean(row) / correction, in `out` or anew.

        `row_mean_K1` is the mean over all rows of the whole matrix, of which some may be elsewhere.
        """
        row_KO = (self.row_KO / (row_mean_K1 * correction)).rsqrt_()
        return torch.mul(values_KOI, row_KO[:, :, None], out=out).mul_(self.column_KI.rsqrt()[:, None, :])


def update_matrices(
    gradient_KOI: Tensor,
    momentum_KOI: Tensor,
    square: FactoredMean,
    instability: FactoredMean,
    betas: Betas,
    epsilons: Epsilons,
    corrections: Corrections = NO_CORRECTIONS,
) -> Tensor:
    """The steps (K, O, I) of matrices, which the caller scales by the learning rate and subtracts.

    `momentum_KOI`, `square` and `instability` are updated in place.
    """
    square.follow(gradient_KOI * gradient_KOI, epsilons[0], betas[1])
    update_KOI = square.normalize(gradient_KOI, square.row_mean(), corrections.square)
    _clip(update_KOI.flatten(1))
    momentum_KOI.lerp_(update_KOI, 1 - betas[0])
    # The memory of the update serves two more times: a large matrix takes three float32 copies of itself and no more.
    surprise_KOI = update_KOI.sub_(momentum_KOI)
    instability.follow(surprise_KOI.mul_(surprise_KOI), epsilons[1], betas[2])
    return instability.normalize(momentum_KOI, instability.row_mean(), corrections.step, out=surprise_KOI)


def update_others(
    gradient_KN: Tensor,
    momentum_KN: Tensor,
    square_KN: Tensor,
    betas: Betas,
    epsilons: Epsilons,
    corrections: Corrections = NO_CORRECTIONS,
) -> Tensor:
    """The steps (K, N) of parameters that are no matrices: biases, norms, depth-wise convolutions.

    Their step is the momentum. `momentum_KN` and `square_KN` are updated in place.
    """
    square_KN.lerp_((gradient_KN * gradient_KN).add_(epsilons[0]), 1 - betas[1])
    update_KN = (square_KN / corrections.square).rsqrt_().mul_(gradient_KN)
    _clip(update_KN)
    momentum_KN.lerp_(update_KN, 1 - betas[0])
    return momentum_KN / corrections.momentum


def _clip(update_KN: Tensor) -> None:
    """Scale each row whose root mean square is above 1 down to 1, in place. NaN stays NaN."""
    norm_K1 = torch.linalg.vector_norm(update_KN, dim=1, keepdim=True)
    update_KN.mul_((math.sqrt(update_KN.shape[1]) / norm_K1).clamp_(max=1.0))
