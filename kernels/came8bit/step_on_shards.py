"""The CAME step of parameters that are sharded by rows over processes (FSDP2's `fully_shard`: DTensors, Shard(0)).

Statistics and blocks of 8-bit momentum are of the whole parameter, so the result is the result of one process but for
the order of sums. There are four passes over all parameters. Each recomputes from gradient and state what the pass
before it knew, so that a step needs four collectives, however many parameters there are:

    squares    sum    column sums of g^2, sum of the row means
    norm       sum    sum of u^2
    surprise   sum    column sums of (u - m)^2, sum of the row means
               max    extremes of the momentum's blocks (8 bytes for 2048 entries), as blocks may straddle shards
    apply

So no process holds rows of another process. Parameters of one shape are stacked, so that a network of more equal blocks
takes more entries in each operation and not more operations, up to ENTRIES or GPU_ENTRIES at once. Beside its state
each process holds a few copies of one stack, or of one larger parameter's rows, at a time. Every process must have
gradients of the same parameters.

Shapes: K parameters, of which o of the O rows are here, I inputs; B blocks of a whole parameter, each with P bounds.
"""

import math
from collections.abc import Hashable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from kernels.blockwise import BLOCK, Map
from kernels.blockwise.reference import MAPS, blocks_of, encode
from kernels.came8bit.batches import batches, descend, put_back, stacked
from kernels.came8bit.came_step import FactoredMean
from kernels.came8bit.state import Work, first_row, is_matrix, sharded_dimension

# So many entries of this process are updated together on a CPU. They are more than a core's cache holds: with fewer the
# calls take longer than the cache saves (docs/log.md).
ENTRIES = 2**20
# A GPU would wait for the launches of smaller stacks. This size was not measured; one float32 copy takes 128 MiB.
GPU_ENTRIES = 2**25


def step(works: list[Work], map: Map | None) -> None:
    """Update the rows that this process has of parameters and states.

    Raises ValueError for a parameter that is not sharded by rows, or whose gradient is sharded in another way.
    """
    by_group: dict[dist.ProcessGroup, list[Rows]] = {}
    for group, alike in sharded_alike(works):
        entries = ENTRIES if alike[0].parameter.device.type == "cpu" else GPU_ENTRIES
        for batch in batches(alike, entries, group.size()):
            rows = MatrixRows(batch, map) if is_matrix(batch[0].parameter) else OtherRows(batch)
            by_group.setdefault(group, []).append(rows)
    for group, batched in by_group.items():
        squares = _reduced([rows.squares() for rows in batched], dist.ReduceOp.SUM, group)
        norms = [rows.norm(total) for rows, total in zip(batched, squares, strict=True)]
        norms = _reduced(norms, dist.ReduceOp.SUM, group)
        surprises, bounds = zip(*(rows.surprise(norm) for rows, norm in zip(batched, norms, strict=True)), strict=True)
        surprises = _reduced(list(surprises), dist.ReduceOp.SUM, group)
        bounds = _reduced(list(bounds), dist.ReduceOp.MAX, group)
        for rows, surprise, bound in zip(batched, surprises, bounds, strict=True):
            rows.apply(surprise, bound)


def sharded_alike(works: list[Work]) -> list[tuple[dist.ProcessGroup, list[Work]]]:
    """The works by how their parameters are sharded, each with the processes among which the rows are divided."""
    alike: dict[Hashable, list[Work]] = {}
    for work in works:
        parameter = work.parameter
        if work.gradient.placements != parameter.placements:
            raise ValueError(f"a gradient's placements {work.gradient.placements} are not its parameter's")
        alike.setdefault((parameter.device_mesh, tuple(parameter.placements)), []).append(work)
    return [
        (same[0].parameter.device_mesh.get_group(sharded_dimension(same[0].parameter)), same) for same in alike.values()
    ]


def _reduced(parts: list[Tensor], operation: dist.ReduceOp, group: dist.ProcessGroup) -> list[Tensor]:
    """Tensors, each reduced over the group, all in one collective."""
    flat = torch.cat([part.flatten() for part in parts])
    if len(flat):  # no process has anything to send, or all have
        dist.all_reduce(flat, operation, group=group)
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


class Rows:
    """The rows of parameters of one shape that this process has, and their step in four passes.

    Each pass returns what it sends, and the next pass is given the reduced total, of the same shape.
    """

    def __init__(self, works: list[Work]) -> None:
        """Take the local rows of the parameters and of their states; they are views, which the passes change."""
        parameter = works[0].parameter
        self.works, self.settings, self.whole = works, works[0].settings, parameter.shape
        # The index, in the whole flattened parameter, of the first entry that is here.
        self.first = first_row(parameter) * parameter.shape[1:].numel()
        # `to_local` would make a view of each parameter, since it is an `nn.Parameter`: an operator for each.
        self.parameters = [work.parameter._local_tensor for work in works]
        self.states = {name: [_local(work.state[name]) for work in works] for name in works[0].state}

    def state(self, name: str) -> Tensor:
        """A tensor of the states (K, ...). If K is 1 it is the state's own memory."""
        return stacked(self.states[name])

    def gradient(self) -> Tensor:
        """The gradients' rows (K, ...) in float32."""
        return stacked([work.gradient.to_local() for work in self.works]).float()

    def nothing(self) -> Tensor:
        """An empty tensor, for a pass that has nothing to send."""
        return self.parameters[0].new_empty(0, dtype=torch.float32)

    def clip(self, norm_K: Tensor) -> Tensor:
        """The factors (K) that scale updates of squared norms `norm_K` down to a root mean square of 1, or 1."""
        return (math.sqrt(self.whole.numel()) / norm_K.sqrt()).clamp(max=1.0)

    def descend(self, movement: Tensor) -> None:
        """p <- p - lr * (weight_decay * p + movement)."""
        shape = (len(self.works), *self.parameters[0].shape)
        descend(self.works, self.parameters, self.states.get("correction", []), movement.view(shape), self.first)


class OtherRows(Rows):
    """The rows of parameters that are no matrices: all but the norm is computed entry by entry."""

    def squares(self) -> Tensor:
        """Nothing to send."""
        return self.nothing()

    def norm(self, _: Tensor) -> Tensor:
        """Move the means of squares; send the sums of u^2 (K)."""
        squares = self.gradient().square().add_(self.settings.eps[0])
        means = self.state("square").lerp_(squares, 1 - self.settings.betas[1])
        put_back(self.states["square"], means)
        return self.update().square_().sum(1)

    def update(self) -> Tensor:
        """u (K, n), before it is clipped."""
        inverse = (self.state("square") / self.settings.corrections.square).rsqrt_()
        return inverse.mul_(self.gradient()).flatten(1)

    def surprise(self, norm_K: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the clip factors; there is nothing to send."""
        self.scale_K = self.clip(norm_K)
        return self.nothing(), self.nothing()

    def apply(self, *_: Tensor) -> None:
        """Move momenta and parameters."""
        momentum = self.state("momentum")
        update = self.update().mul_(self.scale_K[:, None]).view(momentum.shape)
        momentum.lerp_(update, 1 - self.settings.betas[0])
        put_back(self.states["momentum"], momentum)
        self.descend(momentum / self.settings.corrections.momentum)


class MatrixRows(Rows):
    """The rows of matrices or 1x1 convolutions."""

    def __init__(self, works: list[Work], map: Map | None) -> None:
        """As `Rows`; `map` is how the momentum is kept in 8 bits, if it is."""
        super().__init__(works)
        self.map = map
        # These are small, so their stacks are kept from pass to pass. `apply` puts them back.
        self.square = self.statistic("square")
        self.instability = self.statistic("instability")

    def statistic(self, name: str) -> FactoredMean:
        """Factored means: row means (K, o) of the rows here, and column means (K, I) of the whole."""
        return FactoredMean(self.state(f"{name}_row"), self.state(f"{name}_column"))

    def squares(self) -> Tensor:
        """Send column sums of g^2 and the sums of the row means (K, I + 1)."""
        squares_KoI = self.gradient().flatten(2).square()
        return self.follow_rows(self.square, squares_KoI, self.settings.eps[0], self.settings.betas[1])

    def norm(self, total: Tensor) -> Tensor:
        """Move the column means of squares; send the sums of u^2 (K)."""
        self.row_mean_K1 = self.follow_columns(self.square, total, self.settings.eps[0], self.settings.betas[1])
        return self.update().square_().flatten(1).sum(1)

    def update(self) -> Tensor:
        """u (K, o, I), before it is clipped."""
        gradient_KoI = self.gradient().flatten(2)
        return self.square.normalize(gradient_KoI, self.row_mean_K1, self.settings.corrections.square)

    def surprise(self, norm_K: Tensor) -> tuple[Tensor, Tensor]:
        """Send column sums of (u - m)^2 and the sums of the row means (K, I + 1); and the bounds of the blocks of m."""
        self.scale_K11 = self.clip(norm_K)[:, None, None]  # kept, since `apply` scales the update again
        update_KoI = self.update().mul_(self.scale_K11)
        # Not stored: the blocks' bounds are known only after the collective, so `apply` computes this momentum again.
        momentum_KoI = self.momentum().lerp_(update_KoI, 1 - self.settings.betas[0])
        squares_KoI = update_KoI.sub_(momentum_KoI).square_()
        sums = self.follow_rows(self.instability, squares_KoI, self.settings.eps[1], self.settings.betas[2])
        return sums, self.bounds(momentum_KoI)

    def apply(self, total: Tensor, bounds_PKB: Tensor) -> None:
        """Move momenta and parameters."""
        row_mean_K1 = self.follow_columns(self.instability, total, self.settings.eps[1], self.settings.betas[2])
        update_KoI = self.update().mul_(self.scale_K11)
        momentum_KoI = self.momentum().lerp_(update_KoI, 1 - self.settings.betas[0])
        # The parameter moves by the exact momentum; only what is kept for the next step is coded.
        correction = self.settings.corrections.step
        self.descend(self.instability.normalize(momentum_KoI, row_mean_K1, correction, out=update_KoI))
        self.store(momentum_KoI, bounds_PKB)
        for name, mean in (("square", self.square), ("instability", self.instability)):
            put_back(self.states[f"{name}_row"], mean.row_KO)
            put_back(self.states[f"{name}_column"], mean.column_KI)

    def follow_rows(self, mean: FactoredMean, squares_KoI: Tensor, floor: float, beta: float) -> Tensor:
        """Move the row means to the means of `squares + floor`; return column sums and row means' sums (K, I + 1)."""
        mean.row_KO.lerp_(squares_KoI.mean(2).add_(floor), 1 - beta)
        return torch.cat([squares_KoI.sum(1), mean.row_KO.sum(1, keepdim=True)], dim=1)

    def follow_columns(self, mean: FactoredMean, total: Tensor, floor: float, beta: float) -> Tensor:
        """Move the column means, given the total of what `follow_rows` sent; return the means over all rows (K, 1)."""
        mean.column_KI.lerp_((total[:, :-1] / self.whole[0]).add_(floor), 1 - beta)
        return total[:, -1:] / self.whole[0]

    @property
    def packed(self) -> bool:
        """Whether the momentum is kept in 8 bits."""
        return "momentum_codes" in self.states

    @property
    def scales(self) -> list[str]:
        """The names of the numbers that read the codes of all blocks of the whole: as many as a block has bounds."""
        return [name for name in ("momentum_scale", "momentum_minimum") if name in self.states]

    def momentum(self) -> Tensor:
        """A new tensor (K, o, I): the stored momentum."""
        if not self.packed:
            momentum = self.state("momentum").flatten(2)
            return momentum.clone() if len(self.works) == 1 else momentum
        codes_KoI = self.state("momentum_codes").flatten(2)
        if not codes_KoI.numel():
            return codes_KoI.float()
        blocks_KBE = blocks_of(codes_KoI.flatten(1), self.first % BLOCK)
        scales = (self.state(name)[:, self.blocks(blocks_KBE)] for name in self.scales)
        return self.entries(MAPS[self.map].decode(blocks_KBE, *scales)).view(codes_KoI.shape)

    def store(self, momentum_KoI: Tensor, bounds_PKB: Tensor) -> None:
        """Store the momentum, given the bounds of all blocks of the whole."""
        shape = (len(self.works), *self.parameters[0].shape)
        if not self.packed:
            put_back(self.states["momentum"], momentum_KoI.view(shape))
            return
        for name, values_KB in zip(self.scales, MAPS[self.map].scales(bounds_PKB), strict=True):
            put_back(self.states[name], values_KB)
        if momentum_KoI.numel():
            blocks_KBE = blocks_of(momentum_KoI.flatten(1), self.first % BLOCK)
            codes_KBE = encode(blocks_KBE, bounds_PKB[..., self.blocks(blocks_KBE)], self.map)
            put_back(self.states["momentum_codes"], self.entries(codes_KBE).view(shape))

    def bounds(self, momentum_KoI: Tensor) -> Tensor:
        """The bounds of all blocks of the whole (P, K, B); -inf for a block that has no entry here."""
        if not self.packed:
            return self.nothing()
        shape = (len(self.scales), len(self.works), self.states["momentum_scale"][0].numel())
        bounds_PKB = momentum_KoI.new_full(shape, -math.inf)
        if momentum_KoI.numel():
            blocks_KBE = blocks_of(momentum_KoI.flatten(1), self.first % BLOCK)
            bounds_PKB[..., self.blocks(blocks_KBE)] = MAPS[self.map].bounds(blocks_KBE)
        return bounds_PKB

    def blocks(self, blocks_KBE: Tensor) -> slice:
        """Which blocks of the whole `blocks_KBE` are, if their first block holds the first entry here."""
        first = self.first // BLOCK
        return slice(first, first + blocks_KBE.shape[1])

    def entries(self, blocks_KBE: Tensor) -> Tensor:
        """The entries (K, n) of the rows here, cut out of the blocks that hold them."""
        before = self.first % BLOCK
        return blocks_KBE.flatten(1)[:, before : before + self.parameters[0].numel()].contiguous()


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor of a state."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
