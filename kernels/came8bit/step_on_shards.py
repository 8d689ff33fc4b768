"""The CAME step of parameters that are sharded by rows over processes (FSDP2's `fully_shard`: DTensors, Shard(0)).

Statistics and blocks of 8-bit momentum are of the whole parameter, so the result is the result of one process but for
the order of sums. There are four passes over all parameters. Each recomputes from gradient and state what the pass
before it knew, so that a step needs four collectives, however many parameters there are:

    squares    sum    column sums of g^2, sum of the row means
    norm       sum    sum of u^2
    surprise   sum    column sums of (u - m)^2, sum of the row means
               max    extremes of the momentum's blocks (8 bytes for 2048 entries), as blocks may straddle shards
    apply

So no process holds rows of another process. Beside its state each process holds a few copies of one parameter's rows at
a time. Every process must have gradients of the same parameters.

Shapes: o of the O rows are here, I inputs; K = 1, as in `came_step`; B blocks of the whole parameter.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from kernels.blockwise import BLOCK, Map
from kernels.blockwise.reference import MAPS, blocks_of, encode
from kernels.came8bit.came_step import FactoredMean
from kernels.came8bit.rounding import descend
from kernels.came8bit.state import State, Work, first_row, is_matrix, sharded_dimension


def step(works: list[Work], map: Map | None) -> None:
    """Update the rows that this process has of parameters and states.

    Raises ValueError for a parameter that is not sharded by rows, or whose gradient is sharded in another way.
    """
    by_group: dict[dist.ProcessGroup, list[Rows]] = {}
    for work in works:
        group = _group_of(work)
        rows = MatrixRows(work, map) if is_matrix(work.parameter) else OtherRows(work)
        by_group.setdefault(group, []).append(rows)
    for group, alike in by_group.items():
        squares = _reduced([rows.squares() for rows in alike], dist.ReduceOp.SUM, group)
        norms = [rows.norm(total) for rows, total in zip(alike, squares, strict=True)]
        norms = _reduced(norms, dist.ReduceOp.SUM, group)
        surprises, bounds = zip(*(rows.surprise(norm) for rows, norm in zip(alike, norms, strict=True)), strict=True)
        surprises = _reduced(list(surprises), dist.ReduceOp.SUM, group)
        bounds = _reduced(list(bounds), dist.ReduceOp.MAX, group)
        for rows, surprise, bound in zip(alike, surprises, bounds, strict=True):
            rows.apply(surprise, bound)


def _group_of(work: Work) -> dist.ProcessGroup:
    """The processes among which the rows of a parameter are divided."""
    dimension = sharded_dimension(work.parameter)
    if work.gradient.placements != work.parameter.placements:
        raise ValueError(f"a gradient's placements {work.gradient.placements} are not its parameter's")
    return work.parameter.device_mesh.get_group(dimension)


def _reduced(parts: list[Tensor], operation: dist.ReduceOp, group: dist.ProcessGroup) -> list[Tensor]:
    """Flat tensors, each reduced over the group, all in one collective."""
    flat = torch.cat(parts)
    if len(flat):  # no process has anything to send, or all have
        dist.all_reduce(flat, operation, group=group)
    return list(flat.split([len(part) for part in parts]))


class Rows:
    """The rows of one parameter that this process has, and their step in four passes.

    Each pass returns what it sends, and the next pass is given the reduced total.
    """

    def __init__(self, work: Work) -> None:
        """Take the local rows of the parameter and of its state; they are views, which the passes change in place."""
        parameter = work.parameter
        self.work, self.settings, self.whole = work, work.settings, parameter.shape
        # The index, in the whole flattened parameter, of the first entry that is here.
        self.first = first_row(parameter) * parameter.shape[1:].numel()
        self.parameter = parameter.to_local()
        self.state: State = {
            name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in work.state.items()
        }

    def gradient(self) -> Tensor:
        """The gradient's rows in float32."""
        return self.work.gradient.to_local().float()

    def nothing(self) -> Tensor:
        """An empty tensor, for a pass that has nothing to send."""
        return self.parameter.new_empty(0, dtype=torch.float32)

    def clip(self, norm: Tensor) -> Tensor:
        """The factor that scales an update of squared norm `norm` (1) down to a root mean square of 1, or 1."""
        return (math.sqrt(self.whole.numel()) / norm.sqrt()).clamp(max=1.0)

    def descend(self, movement: Tensor) -> None:
        """p <- p - lr * (weight_decay * p + movement)."""
        lr, weight_decay, key = self.settings.lr, self.settings.weight_decay, self.work.key
        movement = movement.view(self.parameter.shape)
        if key is not None:
            descend(self.parameter, movement, lr, weight_decay, key, self.first)
            return
        if weight_decay:
            self.parameter.sub_(self.parameter, alpha=lr * weight_decay)
        self.parameter.add_(movement, alpha=-lr)


class OtherRows(Rows):
    """The rows of a parameter that is no matrix: all but the norm is computed entry by entry."""

    def squares(self) -> Tensor:
        """Nothing to send."""
        return self.nothing()

    def norm(self, _: Tensor) -> Tensor:
        """Move the mean of squares; send the sum of u^2 (1)."""
        squares = self.gradient().square().add_(self.settings.eps[0])
        self.state["square"].lerp_(squares, 1 - self.settings.betas[1])
        return self.update().square().sum()[None]

    def update(self) -> Tensor:
        """u, before it is clipped."""
        return (self.state["square"] / self.settings.corrections.square).rsqrt_().mul_(self.gradient())

    def surprise(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the clip factor; there is nothing to send."""
        self.scale = self.clip(norm)
        return self.nothing(), self.nothing()

    def apply(self, *_: Tensor) -> None:
        """Move momentum and parameter."""
        self.state["momentum"].lerp_(self.update().mul_(self.scale), 1 - self.settings.betas[0])
        self.descend(self.state["momentum"] / self.settings.corrections.momentum)


class MatrixRows(Rows):
    """The rows of a matrix or a 1x1 convolution."""

    def __init__(self, work: Work, map: Map | None) -> None:
        """As `Rows`; `map` is how the momentum is kept in 8 bits, if it is."""
        super().__init__(work)
        self.map = map
        self.square = self.statistic("square")
        self.instability = self.statistic("instability")

    def statistic(self, name: str) -> FactoredMean:
        """A factored mean: row means (1, o) of the rows here, and column means (1, I) of the whole."""
        return FactoredMean(self.state[f"{name}_row"][None], self.state[f"{name}_column"][None])

    def squares(self) -> Tensor:
        """Send column sums of g^2 and the sum of the row means (I + 1)."""
        squares_KoI = self.gradient().flatten(1)[None].square()
        return self.follow_rows(self.square, squares_KoI, self.settings.eps[0], self.settings.betas[1])

    def norm(self, total: Tensor) -> Tensor:
        """Move the column means of squares; send the sum of u^2 (1)."""
        self.row_mean = self.follow_columns(self.square, total, self.settings.eps[0], self.settings.betas[1])
        return self.update().square_().sum()[None]

    def update(self) -> Tensor:
        """u (1, o, I), before it is clipped."""
        gradient_KoI = self.gradient().flatten(1)[None]
        return self.square.normalize(gradient_KoI, self.row_mean, self.settings.corrections.square)

    def surprise(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Send column sums of (u - m)^2 and the sum of the row means (I + 1); and the bounds of the blocks of m."""
        self.scale = self.clip(norm)  # kept, since `apply` scales the update again
        update_KoI = self.update().mul_(self.scale)
        # Not stored: the blocks' bounds are known only after the collective, so `apply` computes this momentum again.
        momentum_KoI = self.momentum().lerp_(update_KoI, 1 - self.settings.betas[0])
        squares_KoI = update_KoI.sub_(momentum_KoI).square_()
        sums = self.follow_rows(self.instability, squares_KoI, self.settings.eps[1], self.settings.betas[2])
        return sums, self.bounds(momentum_KoI)

    def apply(self, total: Tensor, bounds: Tensor) -> None:
        """Move momentum and parameter."""
        row_mean = self.follow_columns(self.instability, total, self.settings.eps[1], self.settings.betas[2])
        update_KoI = self.update().mul_(self.scale)
        momentum_KoI = self.momentum().lerp_(update_KoI, 1 - self.settings.betas[0])
        # The parameter moves by the exact momentum; only what is kept for the next step is coded.
        correction = self.settings.corrections.step
        self.descend(self.instability.normalize(momentum_KoI, row_mean, correction, out=update_KoI))
        self.store(momentum_KoI, bounds)

    def follow_rows(self, mean: FactoredMean, squares_KoI: Tensor, floor: float, beta: float) -> Tensor:
        """Move the row means to the means of `squares + floor`; return column sums and the row means' sum (I + 1)."""
        mean.row_KO.lerp_(squares_KoI.mean(2).add_(floor), 1 - beta)
        return torch.cat([squares_KoI.sum((0, 1)), mean.row_KO.sum()[None]])

    def follow_columns(self, mean: FactoredMean, total: Tensor, floor: float, beta: float) -> Tensor:
        """Move the column means, given the total of what `follow_rows` sent; return the mean over all rows (1, 1)."""
        mean.column_KI.lerp_((total[None, :-1] / self.whole[0]).add_(floor), 1 - beta)
        return total[None, -1:] / self.whole[0]

    @property
    def packed(self) -> bool:
        """Whether the momentum is kept in 8 bits."""
        return "momentum_codes" in self.state

    @property
    def scales(self) -> list[Tensor]:
        """The numbers that read the codes of all blocks of the whole: as many tensors (B) as a block has bounds."""
        return [self.state[name] for name in ("momentum_scale", "momentum_minimum") if name in self.state]

    def momentum(self) -> Tensor:
        """A new tensor (1, o, I): the stored momentum."""
        if not self.packed:
            return self.state["momentum"].flatten(1)[None].clone()
        codes = self.state["momentum_codes"]
        if not codes.numel():
            return codes.flatten(1)[None].float()
        blocks = blocks_of(codes.view(1, -1), self.first % BLOCK)
        values = MAPS[self.map].decode(blocks, *(scale[None, self.blocks(blocks)] for scale in self.scales))
        return self.entries(values).view(1, *codes.flatten(1).shape)

    def store(self, momentum_KoI: Tensor, bounds: Tensor) -> None:
        """Store the momentum, given the bounds of all blocks of the whole."""
        if not self.packed:
            self.state["momentum"].copy_(momentum_KoI.view(self.parameter.shape))
            return
        bounds_P1B = bounds.view(len(self.scales), 1, -1)
        for scale, values in zip(self.scales, MAPS[self.map].scales(bounds_P1B), strict=True):
            scale.copy_(values[0])
        if momentum_KoI.numel():
            blocks = blocks_of(momentum_KoI.view(1, -1), self.first % BLOCK)
            codes = encode(blocks, bounds_P1B[..., self.blocks(blocks)], self.map)
            self.state["momentum_codes"].copy_(self.entries(codes).view(self.parameter.shape))

    def bounds(self, momentum_KoI: Tensor) -> Tensor:
        """The bounds of all blocks of the whole, flat; -inf for a block that has no entry here."""
        if not self.packed:
            return self.nothing()
        bounds = momentum_KoI.new_full((len(self.scales), 1, self.state["momentum_scale"].numel()), -math.inf)
        if momentum_KoI.numel():
            blocks = blocks_of(momentum_KoI.view(1, -1), self.first % BLOCK)
            bounds[..., self.blocks(blocks)] = MAPS[self.map].bounds(blocks)
        return bounds.flatten()

    def blocks(self, blocks_KBE: Tensor) -> slice:
        """Which blocks of the whole `blocks_KBE` are, if their first block holds the first entry here."""
        first = self.first // BLOCK
        return slice(first, first + blocks_KBE.shape[1])

    def entries(self, blocks_KBE: Tensor) -> Tensor:
        """The entries of the rows here, cut out of the blocks that hold them."""
        before = self.first % BLOCK
        return blocks_KBE.flatten()[before : before + self.parameter.numel()]
