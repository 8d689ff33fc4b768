"""A plain statement of the published CAME-8bit (NVlabs/Sana): a loop over parameters, momentum in chunks of 2048 rows.

It is a peer to measure, not to train with: `tensor.split(2048)` cuts an unflattened matrix into chunks of 2048 rows,
not of 2048 elements as the paper says, so that a chunk of millions of entries shares one scale. A constant chunk
divides 0 by 0 there; here its span counts as 1.
"""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kernels.came8bit.state import is_matrix

ROWS = 2048
PACKED_ABOVE = 16_384

Chunk = dict[str, Tensor]


def packed(momentum: Tensor) -> list[Chunk]:
    """Chunks of at most 2048 rows, each with its codes, scale and minimum."""
    chunks = []
    for chunk in momentum.split(ROWS):
        minimum, span = chunk.min(), chunk.max() - chunk.min()
        codes = ((chunk - minimum) / torch.where(span == 0, 1.0, span) * 255).round().to(torch.uint8)
        chunks.append({"data": codes, "scale": span / 255, "min": minimum})
    return chunks


def unpacked(chunks: list[Chunk]) -> Tensor:
    """The momentum that chunks stand for."""
    return torch.cat([chunk["data"].float() * chunk["scale"] + chunk["min"] for chunk in chunks])


class RowChunkCame(torch.optim.Optimizer):
    """CAME with the momentum of matrices and 1x1 convolutions above 16,384 entries in 8 bits by chunks of 2048 rows."""

    def __init__(self, params: ParamsT, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999, 0.9999), "eps": (1e-30, 1e-16)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter, one after the other."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step(parameter, group["lr"], group["betas"], group["eps"])

    def _step(self, parameter: Tensor, lr: float, betas: tuple[float, float, float], eps: tuple[float, float]) -> None:
        state, matrix = self.state[parameter], is_matrix(parameter)
        gradient = parameter.grad.float().flatten(1) if matrix else parameter.grad.float()
        large = matrix and parameter.numel() > PACKED_ABOVE
        if not state:
            momentum = torch.zeros_like(gradient)
            state["momentum"] = packed(momentum) if large else momentum
        squares = gradient**2 + eps[0]
        if matrix:
            update = self._estimate(state, "square", squares, betas[1]).mul_(gradient)
        else:
            square = state.setdefault("square", torch.zeros_like(squares))
            update = square.mul_(betas[1]).add_(squares, alpha=1 - betas[1]).rsqrt().mul_(gradient)
        update.div_((update.norm() / update.numel() ** 0.5).clamp_(min=1.0))
        momentum = unpacked(state["momentum"]) if large else state["momentum"]
        momentum.mul_(betas[0]).add_(update, alpha=1 - betas[0])
        movement = momentum
        if matrix:
            surprise = (update - momentum) ** 2 + eps[1]
            movement = self._estimate(state, "instability", surprise, betas[2]).mul_(momentum)
        if large:
            state["momentum"] = packed(momentum)
        parameter.add_(movement.view(parameter.shape), alpha=-lr)

    def _estimate(self, state: dict[str, Tensor], name: str, values: Tensor, beta: float) -> Tensor:
        """The inverse root of the rank-one estimate of `values`, after its means have moved."""
        row = state.setdefault(f"{name}_row", values.new_zeros(values.shape[0]))
        column = state.setdefault(f"{name}_column", values.new_zeros(values.shape[1]))
        row.mul_(beta).add_(values.mean(1), alpha=1 - beta)
        column.mul_(beta).add_(values.mean(0), alpha=1 - beta)
        return (row / row.mean()).rsqrt_()[:, None] * column.rsqrt()[None, :]
