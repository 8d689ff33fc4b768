"""The CAME step of sharded parameters by Triton kernels: launches and collectives are the same however many there are.

It is the step of `step_on_shards`, with its four collectives, computed as in `step_in_triton` on the rows that are
here. One pass is added, since a process must tell the bounds of its part of a block before any can code it:

    squares    read g               row and column sums of g^2              sum of columns and row means
    norms      read g               sum of u^2                              sum
    surprise   read g, codes        row and column sums of (u - m)^2        sum of columns and row means
    bounds     read g, codes        extremes of the blocks of m             max
    apply      read g, codes, p     write codes, p

Parameters that are alike share launches, as in `step_in_triton`. Whether they are alike may differ between processes,
since it depends on addresses. The messages therefore have the order of the optimizer's parameters.
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
import triton.language as tl
from torch import Tensor

from kernels.ahead_of_time import Build
from kernels.blockwise import BLOCK, Map, dynamic
from kernels.blockwise.linear import LEVELS
from kernels.blockwise.reference import MAPS
from kernels.came8bit import step_in_triton
from kernels.came8bit.shards_triton_kernel import bounds_kernel, column_sums_kernel, columns_kernel
from kernels.came8bit.state import State, Work, first_row, is_matrix
from kernels.came8bit.triton_kernel import (
    BOUNDS,
    COLUMN_SUMS,
    COLUMNS,
    FACTORS,
    FIELDS,
    FIRST_BLOCK,
    FIRST_CHUNK,
    FIRST_COLUMN_CHUNK,
    FIRST_ROW,
    FIRST_TILE,
    INSTABILITY_COLUMN,
    INSTABILITY_ROW,
    KEY,
    KEY_2,
    MESSAGE,
    NORMS,
    PACKED,
    ROW_SUMS,
    ROWS,
    SKIPPED,
    SQUARE_COLUMN,
    SQUARE_ROW,
    SQUARES,
    SURPRISE,
    WHOLE_ROWS,
    apply_kernel,
    others_kernel,
    statistics_kernel,
    tiles_kernel,
    totals_kernel,
)


class Here(NamedTuple):
    """What is here of one parameter. Of a parameter that is no matrix, rows are entries and `columns` is 1."""

    matrix: bool
    rows: int
    columns: int
    first_row: int
    whole_rows: int
    message: int  # where its column sums begin in the message
    bounds: int  # where the bounds of its blocks begin
    place: int  # its place among all that step


class Plan(NamedTuple):
    """As `step_in_triton.Plan`: `chunks` are of rows alone, and `column_chunks` are of columns."""

    table: Tensor
    tiles: Tensor
    chunks: Tensor
    column_chunks: Tensor
    blocks: Tensor
    other_blocks: Tensor
    chunk_starts: Tensor
    norm_starts: Tensor
    matrix_places: Tensor
    places: Tensor
    parts: int
    factors: int


@lru_cache(maxsize=16)
def plan_of(here: tuple[Here, ...], device: torch.device) -> Plan:
    """The plan for what is here of parameters, matrices first."""
    matrices = [one for one in here if one.matrix]
    numbers = torch.tensor([one[1:] for one in here], dtype=torch.int64).view(-1, 7)
    rows, columns, first, whole, message, bounds, _ = numbers[: len(matrices)].unbind(1)
    sizes = numbers[len(matrices) :, 0]
    tile, cdiv, starts = step_in_triton.TILE, step_in_triton.cdiv, step_in_triton.starts
    strips, across = cdiv(rows, tile["STRIP"]), cdiv(columns, tile["COLUMNS"])
    chunks, column_chunks = cdiv(rows, step_in_triton.CHUNK), cdiv(columns, step_in_triton.CHUNK)
    begin, end = first * columns, (first + rows) * columns
    blocks = torch.where(rows > 0, cdiv(end, BLOCK) - begin // BLOCK, 0)
    other_blocks = cdiv(sizes, BLOCK)
    table = torch.zeros(len(here), FIELDS.value, dtype=torch.int64)
    row_sums, column_sums = across * rows, strips * columns
    factor_starts = starts(cdiv(rows + columns, 4) * 4)
    for name, values in (
        (ROWS, rows),
        (COLUMNS, columns),
        (FIRST_TILE, starts(strips * across)[:-1]),
        (FIRST_CHUNK, starts(chunks)[:-1]),
        (FIRST_COLUMN_CHUNK, starts(column_chunks)[:-1]),
        (FIRST_BLOCK, starts(blocks)[:-1] - begin // BLOCK),
        (ROW_SUMS, starts(row_sums)[:-1]),
        (COLUMN_SUMS, starts(column_sums)[:-1] + row_sums.sum()),
        (FACTORS, factor_starts[:-1]),
        (FIRST_ROW, first),
        (WHOLE_ROWS, whole),
        (MESSAGE, message),
        (BOUNDS, bounds),
    ):
        table[: len(matrices), name.value] = values
    of_others = table[len(matrices) :]
    of_others[:, ROWS.value], of_others[:, FIRST_BLOCK.value] = sizes, starts(other_blocks)[:-1]
    of_others[:, FIRST_ROW.value], of_others[:, WHOLE_ROWS.value] = numbers[len(matrices) :, 2:4].unbind(1)

    def owners(counts: Tensor, before: int = 0) -> Tensor:
        """For each program the number of its parameter, where parameter i has `counts[i]` programs."""
        return torch.repeat_interleave(torch.arange(before, before + len(counts)), counts).int().to(device)

    places = numbers[:, 6].to(device)
    return Plan(
        table,
        owners(strips * across),
        owners(chunks),
        owners(column_chunks),
        owners(blocks),
        owners(other_blocks, len(matrices)),
        starts(chunks).int().to(device),
        starts(torch.cat([strips * across, other_blocks])).int().to(device),
        places[: len(matrices)],
        places,
        int((row_sums + column_sums).sum()),
        int(factor_starts[-1]),
    )


def step(works: list[Work], map: Map | None, group: dist.ProcessGroup, found_inf: Tensor | None = None) -> None:
    """Update the rows that this process has of parameters and states, which are sharded over `group` in one way.

    While `found_inf`, a float32 tensor of one number on the device of the parameters, is 1, nothing is changed.
    """
    device = works[0].parameter.device
    here, columns, blocks = _here(works)
    alike: dict[Hashable, list[int]] = {}
    states = [_local_state(work) for work in works]
    for place, (work, one, state) in enumerate(zip(works, here, states, strict=True)):
        dtypes = (work.parameter.dtype, work.gradient.dtype, work.key is None)
        alike.setdefault((dtypes, work.settings, _is_aligned(work, one, state)), []).append(place)
    shares = [
        Share([works[place] for place in places], [here[place] for place in places], states, map, aligned, found_inf)
        for (_, _, aligned), places in alike.items()
    ]
    squares, instabilities = (torch.zeros(columns + len(works), device=device) for _ in range(2))
    norms = torch.zeros(len(works), device=device)
    bounds = torch.full((2 if map == "linear" else 1, blocks), -torch.inf, device=device)
    for share in shares:
        share.squares(squares, columns)
    if columns:
        dist.all_reduce(squares, dist.ReduceOp.SUM, group=group)
    for share in shares:
        share.norms(squares, columns, norms)
    dist.all_reduce(norms, dist.ReduceOp.SUM, group=group)
    for share in shares:
        share.surprise(norms, instabilities, columns, bounds)
    if columns:
        dist.all_reduce(instabilities, dist.ReduceOp.SUM, group=group)
    if blocks:
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group=group)
    for share in shares:
        share.apply(instabilities, columns, bounds)
    if map is not None and blocks:
        packed = [state for state in states if "momentum_codes" in state]
        _store_scales(packed, map, bounds, found_inf)


def _store_scales(packed: list[State], map: Map, bounds: Tensor, found_inf: Tensor | None) -> None:
    """Put the numbers of all blocks that follow from their bounds into the states, unless `found_inf` is 1."""
    counts = [state["momentum_scale"].numel() for state in packed]
    for name, numbers in zip(("momentum_scale", "momentum_minimum"), MAPS[map].scales(bounds), strict=False):
        kept = [state[name] for state in packed]
        if found_inf is not None:
            # Not a product with the flag, since the new numbers may be NaN.
            numbers = torch.where(found_inf != 0, torch.cat(kept), numbers)
        torch._foreach_copy_(kept, list(numbers.split(counts)))


def _local_state(work: Work) -> State:
    """What is here of each tensor of a state."""
    return {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in work.state.items()}


def _here(works: list[Work]) -> tuple[list[Here], int, int]:
    """What is here of each parameter, how many columns all matrices have, and how many blocks in 8 bits."""
    here, columns, blocks = [], 0, 0
    first_rows: dict[torch.Size, int] = {}
    for place, work in enumerate(works):
        parameter = work.parameter
        if parameter.shape not in first_rows:
            first_rows[parameter.shape] = first_row(parameter)
        first, rows, whole = first_rows[parameter.shape], len(parameter._local_tensor), parameter.shape[0]
        if is_matrix(parameter):
            here.append(Here(True, rows, parameter.shape[1], first, whole, columns, blocks, place))
            columns += parameter.shape[1]
            blocks += work.state["momentum_scale"].numel() if "momentum_codes" in work.state else 0
        else:
            rest = parameter.shape[1:].numel()
            here.append(Here(False, rows * rest, 1, first * rest, whole * rest, 0, 0, place))
    return here, columns, blocks


def _is_aligned(work: Work, here: Here, state: State) -> bool:
    """Whether a thread can move 16 bytes of each tensor at once, in every row."""
    tensors = (work.parameter._local_tensor, work.gradient._local_tensor, *state.values())
    width = here.columns if here.matrix else here.rows
    return width % 16 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


class Share:
    """Parameters that are alike, and their step in five passes between which stand the collectives."""

    def __init__(
        self,
        works: list[Work],
        here: list[Here],
        states: list[State],
        map: Map | None,
        aligned: bool,
        found_inf: Tensor | None,
    ) -> None:
        """Fill the table and take scratch memory."""
        order = sorted(range(len(works)), key=lambda place: not here[place].matrix)
        works, here = [works[place] for place in order], [here[place] for place in order]
        self.device, self.settings = works[0].parameter.device, works[0].settings
        self.plan = plan_of(tuple(here), self.device)
        self.matrices = sum(one.matrix for one in here)
        self.count = len(works)
        table = _table(self.plan, works, here, [states[one.place] for one in here])
        self.table = table.to(self.device, non_blocking=True)
        if found_inf is not None:
            self.table[:, SKIPPED.value] = found_inf
        self.weights = [1 - beta for beta in self.settings.betas]
        types = step_in_triton.TYPES
        self.types = {
            "PARAMETER_TYPE": types[works[0].parameter.dtype],
            "GRADIENT_TYPE": types[works[0].gradient.dtype],
        }
        self.how = {"STOCHASTIC": works[0].key is not None, "SHARDED": True, "ALIGNED": aligned}
        self.map, self.aligned = map or "linear", aligned
        self.values, self.thresholds = dynamic.values(self.device), dynamic.thresholds(self.device)
        self.parts, self.factors, self.next_factors = (
            self._floats(size) for size in (self.plan.parts, self.plan.factors, self.plan.factors)
        )
        self.norm_parts = self._floats(len(self.plan.tiles) + len(self.plan.other_blocks))
        self.square_totals = self.instability_totals = self.norm_totals = self._floats(0)

    def _floats(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float32, device=self.device)

    def squares(self, message: Tensor, columns: int) -> None:
        """Sum g^2 by rows and columns, and move the row means."""
        if self.matrices:
            self._tiles(SQUARES)
            self._rows(SQUARE_ROW, SQUARE_COLUMN, self.factors, 1, message, columns)

    def norms(self, message: Tensor, columns: int, norms: Tensor) -> None:
        """Move the column means of squares and the squares of other parameters; sum u^2."""
        if self.matrices:
            correction = self.settings.corrections.square
            self.square_totals = self._columns(SQUARE_COLUMN, self.factors, 1, message, columns, correction)
            self._tiles(NORMS)
        if self.count > self.matrices:
            self._others(apply=False)
        totals = self._floats(self.count)
        totals_kernel[(self.count,)](self.norm_parts, self.plan.norm_starts, totals, CHUNK=step_in_triton.CHUNK)
        norms[self.plan.places] = totals

    def surprise(self, norms: Tensor, message: Tensor, columns: int, bounds: Tensor) -> None:
        """Sum (u - m)^2 by rows and columns, move its row means, and find the bounds of the blocks of m."""
        self.norm_totals = norms[self.plan.places]
        if self.matrices:
            self._tiles(SURPRISE)
            self._rows(INSTABILITY_ROW, INSTABILITY_COLUMN, self.next_factors, 2, message, columns)
            if bounds.numel() and len(self.plan.blocks):
                scratches = (self.factors, self.square_totals, self.norm_totals, bounds[0], bounds[-1], self.values)
                bounds_kernel[(len(self.plan.blocks),)](
                    self.table,
                    self.plan.blocks,
                    *scratches,
                    self.weights[0],
                    GRADIENT_TYPE=self.types["GRADIENT_TYPE"],
                    MAP=self.map,
                    ALIGNED=self.aligned,
                    BLOCK=BLOCK,
                    **step_in_triton.APPLY_LAUNCH,
                )

    def apply(self, message: Tensor, columns: int, bounds: Tensor) -> None:
        """Move parameters and momenta."""
        if self.matrices:
            correction = self.settings.corrections.step
            totals = self._columns(INSTABILITY_COLUMN, self.next_factors, 2, message, columns, correction)
            if len(self.plan.blocks):
                sums = (self.factors, self.next_factors, self.square_totals, self.norm_totals, totals)
                lower, upper = (bounds[0], bounds[-1]) if bounds.numel() else (self.values, self.values)
                apply_kernel[(len(self.plan.blocks),)](
                    self.table,
                    self.plan.blocks,
                    *sums,
                    lower,
                    upper,
                    self.values,
                    self.thresholds,
                    self.weights[0],
                    *self._move(),
                    **self.types,
                    MAP=self.map,
                    **self.how,
                    BLOCK=BLOCK,
                    LEVELS=LEVELS,
                    **step_in_triton.APPLY_LAUNCH,
                )
        if self.count > self.matrices:
            self._others(apply=True)

    def _move(self) -> tuple[float, float]:
        """The rate, and the rate times the weight decay."""
        return self.settings.lr, self.settings.lr * self.settings.weight_decay

    def _tiles(self, which: tl.constexpr) -> None:
        """Launch one of the three passes in tiles."""
        if not len(self.plan.tiles):
            return
        tile = step_in_triton.TILE
        tiles_kernel[(len(self.plan.tiles),)](
            self.table,
            self.plan.tiles,
            self.parts,
            self.factors,
            self.square_totals,
            self.norm_parts,
            self.norm_totals,
            self.values,
            self.weights[0],
            GRADIENT_TYPE=self.types["GRADIENT_TYPE"],
            MAP=self.map,
            PASS=which.value,
            SHARDED=True,
            ALIGNED=self.aligned,
            STRIP=tile["STRIP"],
            TILE_ROWS=tile["ROWS"],
            TILE_COLUMNS=tile["COLUMNS"],
            **step_in_triton.TILES_LAUNCH[which.value],
        )

    def _rows(
        self, row: tl.constexpr, column: tl.constexpr, factors: Tensor, beta: int, message: Tensor, columns: int
    ) -> None:
        """Move row means by what the tiles summed; put the column sums and the sums of row means into the message."""
        plan, chunk, strip = self.plan, step_in_triton.CHUNK, step_in_triton.TILE["STRIP"]
        row_sums, totals = self._floats(len(plan.chunks)), self._floats(self.matrices)
        if len(plan.chunks):
            statistics_kernel[(len(plan.chunks),)](
                self.table,
                plan.chunks,
                self.parts,
                factors,
                row_sums,
                self.weights[beta],
                self.settings.eps[beta - 1],
                ROW=row.value,
                COLUMN=column.value,
                CHUNK=chunk,
                STRIP=strip,
                TILE_COLUMNS=step_in_triton.TILE["COLUMNS"],
            )
        totals_kernel[(self.matrices,)](row_sums, plan.chunk_starts, totals, CHUNK=chunk)
        sums = (self.table, plan.column_chunks, self.parts, message)
        column_sums_kernel[(len(plan.column_chunks),)](*sums, CHUNK=chunk, STRIP=strip)
        message[columns + plan.matrix_places] = totals

    def _columns(
        self, column: tl.constexpr, factors: Tensor, beta: int, message: Tensor, columns: int, correction: float
    ) -> Tensor:
        """Move column means by the message; return the sums of the row means (matrices), corrected."""
        columns_kernel[(len(self.plan.column_chunks),)](
            self.table,
            self.plan.column_chunks,
            message,
            factors,
            self.weights[beta],
            self.settings.eps[beta - 1],
            COLUMN=column.value,
            CHUNK=step_in_triton.CHUNK,
        )
        return message[columns + self.plan.matrix_places].mul_(correction)

    def _others(self, apply: bool) -> None:
        """Launch one of the two passes over parameters that are no matrices."""
        if not len(self.plan.other_blocks):
            return
        corrections = self.settings.corrections
        others_kernel[(len(self.plan.other_blocks),)](
            self.table,
            self.plan.other_blocks,
            self.norm_parts[len(self.plan.tiles) :],
            self.norm_totals,
            *self.weights[:2],
            self.settings.eps[0],
            1 / corrections.square,
            1 / corrections.momentum,
            *self._move(),
            **self.types,
            APPLY=apply,
            **self.how,
            BLOCK=BLOCK,
        )


def _table(plan: Plan, works: list[Work], here: list[Here], states: list[State]) -> Tensor:
    """The table of the plan with addresses and keys filled in, as `triton_kernel` asks for them of shards."""
    table = plan.table.clone()
    rows = []
    for work, one, state in zip(works, here, states, strict=True):
        packed = "momentum_codes" in state
        tensors = (
            work.parameter._local_tensor,
            work.gradient._local_tensor,
            state["momentum_codes" if packed else "momentum"],
            state.get("momentum_scale"),
            state.get("momentum_minimum"),
            state["square_row"] if one.matrix else state["square"],
            *(state.get(name) for name in ("square_column", "instability_row", "instability_column")),
        )
        rows.append([*(_address(tensor) for tensor in tensors), packed, *(work.key or (0, 0))])
    numbers = torch.tensor(rows, dtype=torch.int64)
    table[:, :9], table[:, PACKED.value] = numbers[:, :9], numbers[:, 9]
    table[:, KEY.value : KEY_2.value + 1] = numbers[:, 10:]
    return table.pin_memory() if works[0].parameter.is_cuda else table


def _address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None.

    Raises ValueError for local rows that are not contiguous, which the whole tensor's strides do not tell.
    """
    if tensor is None:
        return 0
    if not tensor.is_contiguous():
        shape, strides = tuple(tensor.shape), tensor.stride()
        raise ValueError(f"CAME's kernels step contiguous rows: make the local rows {shape} of strides {strides} so")
    return tensor.data_ptr()


def ahead_of_time() -> list[Build]:
    """The kernels of shards at the sizes of real runs, for float32 parameters and gradients, as FSDP2 keeps them.

    Those that round at random are listed for bfloat16 as well.
    """
    build_of, launch = step_in_triton.build_of, step_in_triton.APPLY_LAUNCH
    chunk, strip = {"CHUNK": step_in_triton.CHUNK}, {"STRIP": step_in_triton.TILE["STRIP"]}
    sizes = {**strip, "TILE_ROWS": step_in_triton.TILE["ROWS"], "TILE_COLUMNS": step_in_triton.TILE["COLUMNS"]}
    gradient, how = {"GRADIENT_TYPE": tl.float32}, {"SHARDED": True, "ALIGNED": True}
    blocks = {"MAP": "linear", "ALIGNED": True, "BLOCK": BLOCK}
    builds = [
        build_of(column_sums_kernel, {**chunk, **strip}),
        build_of(columns_kernel, {"COLUMN": SQUARE_COLUMN.value, **chunk}),
        build_of(bounds_kernel, {**gradient, **blocks}, launch),
    ]
    for which, options in step_in_triton.TILES_LAUNCH.items():
        builds.append(build_of(tiles_kernel, {**gradient, "MAP": "linear", "PASS": which, **how, **sizes}, options))
    builds.append(build_of(others_kernel, {**_moved(tl.float32), "APPLY": False}))
    for dtype in (tl.float32, tl.bfloat16):
        builds.append(build_of(apply_kernel, {**_moved(dtype), "MAP": "linear", "LEVELS": LEVELS}, launch))
        builds.append(build_of(others_kernel, {**_moved(dtype), "APPLY": True}))
    return builds


def _moved(dtype: tl.dtype) -> dict[str, object]:
    """The constants of kernels that move parameters of this type, of which bfloat16 is rounded at random."""
    types = {"PARAMETER_TYPE": dtype, "GRADIENT_TYPE": dtype, "STOCHASTIC": dtype == tl.bfloat16}
    return {**types, "SHARDED": True, "ALIGNED": True, "BLOCK": BLOCK}
