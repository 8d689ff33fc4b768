"""The CAME step in eleven launches for all parameters that are alike. The algorithm is stated in `came_step`.

Bias correction takes two small launches more.

Parameters are alike if they are on one device, have the same dtypes and settings, and all can or all cannot be read 16
bytes at a time. The kernels find their work in a table with a row for each parameter: addresses, sizes and places in
scratch memory. The statistics of a matrix must be complete before its entries can move, so the kernels go over it four
times: three times in tiles, and last in blocks of 2048 entries of the flattened matrix, as it is quantised.

    squares    read g               row and column sums of g^2
    norms      read g               sum of u^2
    surprise   read g, codes        row and column sums of (u - m)^2
    apply      read g, codes, p     write codes, p

The passes move, for each entry of an 8-bit matrix with float32 parameters and gradients, 4 + 4 + 5 + 14 = 27 bytes. The
14 bytes of the last pass are the least that any CAME-8bit must move. With bfloat16 they move 2 + 2 + 3 + 8 = 15 bytes,
and 8 are the least. Between the passes small kernels add up what the tiles left, in a fixed order, so that runs repeat
to the bit. Each pass computes u anew, so scratch memory holds sums only: less than 0.04 bytes for each entry of large
matrices.

Parameters, gradients and states must be contiguous and whole. A matrix must have fewer than 2^31 entries and 2^20
columns.
"""

from collections.abc import Hashable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ahead_of_time import Build
from kernels.blockwise import BLOCK, Map, dynamic
from kernels.blockwise.linear import LEVELS
from kernels.came8bit.state import Work, is_matrix
from kernels.came8bit.triton_kernel import (
    COLUMN_SUMS,
    COLUMNS,
    FACTORS,
    FIELDS,
    FIRST_BLOCK,
    FIRST_CHUNK,
    FIRST_TILE,
    INSTABILITY_COLUMN,
    INSTABILITY_ROW,
    KEY,
    KEY_2,
    NORMS,
    PACKED,
    ROW_SUMS,
    ROWS,
    SKIPPED,
    SQUARE_COLUMN,
    SQUARE_ROW,
    SQUARES,
    SURPRISE,
    apply_kernel,
    others_kernel,
    statistics_kernel,
    tiles_kernel,
    totals_kernel,
)

TILE = {"STRIP": 512, "ROWS": 16, "COLUMNS": 256}
"""One program of a pass in tiles walks down STRIP rows of COLUMNS columns, ROWS rows at a time."""
CHUNK = 1024
"""Entries of a row or column statistic that one program updates."""
# The launches were chosen by reading the machine code. A thread loads 8 or 16 bytes at once and has at most 64
# registers, of which a multiprocessor has enough for half of its threads.
TILES_LAUNCH = {
    SQUARES.value: {"num_warps": 8},
    NORMS.value: {"num_warps": 8},
    SURPRISE.value: {"num_warps": 16, "maxnreg": 64},
}
APPLY_LAUNCH = {"num_warps": 8}
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
NUMBERS = ("weight", "square_weight", "floor", "square_inverse", "momentum_inverse", "lr", "decay")
"""The arguments of the kernels that are single numbers."""


class Plan(NamedTuple):
    """How the programs of the kernels share parameters of certain shapes: matrices first, then all others.

    `table` has everything but addresses and keys, which change from step to step. `tiles`, `chunks`, `blocks` and
    `other_blocks` have, for each program of a launch, the number of its parameter. `chunk_starts` and `norm_starts` say
    where the numbers of each parameter begin in `row_sums` and `norms`. `parts` and `factors` are how many floats the
    scratch tensors of these names hold.
    """

    table: Tensor
    tiles: Tensor
    chunks: Tensor
    blocks: Tensor
    other_blocks: Tensor
    chunk_starts: Tensor
    norm_starts: Tensor
    parts: int
    factors: int


@lru_cache(maxsize=64)  # a step in the backward pass makes one plan for each shape of large matrices
def plan_of(matrices: tuple[tuple[int, int], ...], others: tuple[int, ...], device: torch.device) -> Plan:
    """The plan for matrices of these rows and columns, and others of these sizes."""
    rows, columns = (
        torch.tensor(sizes, dtype=torch.int64) for sizes in (zip(*matrices, strict=True) if matrices else ((), ()))
    )
    sizes = torch.tensor(others, dtype=torch.int64)
    strips, across = cdiv(rows, TILE["STRIP"]), cdiv(columns, TILE["COLUMNS"])
    chunks, blocks = cdiv(rows, CHUNK) + cdiv(columns, CHUNK), cdiv(rows * columns, BLOCK)
    other_blocks = cdiv(sizes, BLOCK)
    # In 64 bits, since addresses are fields, too.
    table = torch.zeros(len(matrices) + len(others), FIELDS.value, dtype=torch.int64)
    of_matrices, of_others = table[: len(matrices)], table[len(matrices) :]
    row_sums, column_sums = across * rows, strips * columns
    factor_starts = starts(cdiv(rows + columns, 4) * 4)  # each begins at a multiple of 16 bytes
    for name, numbers in (
        (ROWS, rows),
        (COLUMNS, columns),
        (FIRST_TILE, starts(strips * across)[:-1]),
        (FIRST_CHUNK, starts(chunks)[:-1]),
        (FIRST_BLOCK, starts(blocks)[:-1]),
        (ROW_SUMS, starts(row_sums)[:-1]),
        (COLUMN_SUMS, starts(column_sums)[:-1] + row_sums.sum()),
        (FACTORS, factor_starts[:-1]),
    ):
        of_matrices[:, name.value] = numbers
    # A parameter that is no matrix keeps its number of entries in the field of the rows.
    of_others[:, ROWS.value], of_others[:, FIRST_BLOCK.value] = sizes, starts(other_blocks)[:-1]

    def owners(counts: Tensor, first: int = 0) -> Tensor:
        """For each program the number of its parameter, where parameter i has `counts[i]` programs."""
        return torch.repeat_interleave(torch.arange(first, first + len(counts)), counts).int().to(device)

    return Plan(
        table,
        owners(strips * across),
        owners(chunks),
        owners(blocks),
        owners(other_blocks, len(matrices)),
        starts(chunks).int().to(device),
        starts(torch.cat([strips * across, other_blocks])).int().to(device),
        int((row_sums + column_sums).sum()),
        int(factor_starts[-1]),
    )


def cdiv(sizes: Tensor, size: int) -> Tensor:
    """Sizes divided by `size`, rounded up."""
    return (sizes + size - 1) // size


def starts(counts: Tensor) -> Tensor:
    """Where each of several runs of these lengths begins if they are laid end to end, and where the last one ends."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def scratch(plan: Plan, device: torch.device) -> dict[str, Tensor]:
    """The memory that a step needs beside parameters, gradients, states and the plan. It holds sums and no entries."""

    def floats(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float32, device=device)

    matrices, parameters = len(plan.chunk_starts) - 1, len(plan.norm_starts) - 1
    return {
        "parts": floats(plan.parts),  # row and column sums of each tile
        "factors": floats(plan.factors),  # inverse roots of the row and column means of squares
        "next_factors": floats(plan.factors),  # the same of instabilities
        "row_sums": floats(len(plan.chunks)),
        "square_totals": floats(matrices),
        "instability_totals": floats(matrices),
        "norms": floats(len(plan.tiles) + len(plan.other_blocks)),
        "norm_totals": floats(parameters),
    }


def step(works: list[Work], map: Map | None, found_inf: Tensor | None = None) -> None:
    """Update parameters and states in place, with one set of launches for parameters that are alike.

    While `found_inf`, a float32 tensor of one number on the device of the parameters, is 1, nothing is changed.
    """
    alike: dict[Hashable, list[Work]] = {}
    for work in works:
        dtypes = (work.parameter.dtype, work.gradient.dtype, work.key is None)
        kind = (work.parameter.device, dtypes, work.settings, _is_aligned(work))
        alike.setdefault(kind, []).append(work)
    for same in alike.values():
        _step_alike(same, map, _is_aligned(same[0]), found_inf)


def _is_aligned(work: Work) -> bool:
    """Whether a thread can move 16 bytes of each tensor at once, in every row."""
    tensors = (work.parameter, work.gradient, *work.state.values())
    width = work.parameter.shape[1] if is_matrix(work.parameter) else work.parameter.numel()
    return width % 16 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _step_alike(works: list[Work], map: Map | None, aligned: bool, found_inf: Tensor | None) -> None:
    """Update parameters that are alike, in eleven launches."""
    matrices = [work for work in works if is_matrix(work.parameter)]
    others = [work for work in works if not is_matrix(work.parameter)]
    device, settings = works[0].parameter.device, works[0].settings
    shapes = tuple((work.parameter.shape[0], work.parameter.shape[1]) for work in matrices)
    plan = plan_of(shapes, tuple(work.parameter.numel() for work in others), device)
    table, room = _table(plan, matrices + others).to(device, non_blocking=True), scratch(plan, device)
    if found_inf is not None:
        table[:, SKIPPED.value] = found_inf
    # As `lerp_` does: old + (new - old) * (1 - beta).
    weights = [1 - beta for beta in settings.betas]
    types = {"PARAMETER_TYPE": TYPES[works[0].parameter.dtype], "GRADIENT_TYPE": TYPES[works[0].gradient.dtype]}
    move = (settings.lr, settings.lr * settings.weight_decay)
    how = {"STOCHASTIC": works[0].key is not None, "SHARDED": False, "ALIGNED": aligned}
    # Kernels of the linear map are given these two as well, and do not read them.
    values, thresholds = dynamic.values(device), dynamic.thresholds(device)
    sizes = {"STRIP": TILE["STRIP"], "TILE_ROWS": TILE["ROWS"], "TILE_COLUMNS": TILE["COLUMNS"]}

    def over_tiles(which: tl.constexpr) -> None:
        """Launch one of the three passes in tiles."""
        scratches = (room["parts"], room["factors"], room["square_totals"], room["norms"], room["norm_totals"])
        options = {
            "GRADIENT_TYPE": types["GRADIENT_TYPE"],
            "MAP": map or "linear",  # without a map no momentum is in 8 bits, and the kernels read none
            "PASS": which.value,
            "SHARDED": False,
            "ALIGNED": aligned,
            **sizes,
            **TILES_LAUNCH[which.value],
        }
        tiles_kernel[(len(plan.tiles),)](table, plan.tiles, *scratches, values, weights[0], **options)

    def statistics(
        weight: float,
        floor: float,
        row: tl.constexpr,
        column: tl.constexpr,
        factors: str,
        totals: str,
        correction: float,
    ) -> None:
        """Move row and column statistics by the sums that the tiles left, and add up the row means.

        The kernels read the totals only to divide the estimate by the mean of the rows, so correcting them corrects it.
        """
        scratches = (room["parts"], room[factors], room["row_sums"])
        options = {"CHUNK": CHUNK, "STRIP": TILE["STRIP"], "TILE_COLUMNS": TILE["COLUMNS"]}
        fields = {"ROW": row.value, "COLUMN": column.value}
        statistics_kernel[(len(plan.chunks),)](table, plan.chunks, *scratches, weight, floor, **fields, **options)
        totals_kernel[(len(matrices),)](room["row_sums"], plan.chunk_starts, room[totals], CHUNK=CHUNK)
        if correction != 1:
            room[totals].mul_(correction)

    def over_others(apply: bool) -> None:
        """Launch one of the two passes over parameters that are no matrices."""
        own = (table, plan.other_blocks, room["norms"][len(plan.tiles) :], room["norm_totals"])
        inverses = (1 / settings.corrections.square, 1 / settings.corrections.momentum)
        numbers = (*weights[:2], settings.eps[0], *inverses, *move)
        others_kernel[(len(plan.other_blocks),)](*own, *numbers, **types, APPLY=apply, **how, BLOCK=BLOCK)

    if matrices:
        over_tiles(SQUARES)
        squares = (SQUARE_ROW, SQUARE_COLUMN, "factors", "square_totals", settings.corrections.square)
        statistics(weights[1], settings.eps[0], *squares)
        over_tiles(NORMS)
    if others:
        over_others(apply=False)
    # Both kinds have left their norms in one tensor, so that one launch adds them up.
    totals_kernel[(len(works),)](room["norms"], plan.norm_starts, room["norm_totals"], CHUNK=CHUNK)
    if matrices:
        over_tiles(SURPRISE)
        instabilities = (INSTABILITY_ROW, INSTABILITY_COLUMN, "next_factors", "instability_totals")
        statistics(weights[2], settings.eps[1], *instabilities, settings.corrections.step)
        scratches = [
            room[name] for name in ("factors", "next_factors", "square_totals", "norm_totals", "instability_totals")
        ]
        options = {"MAP": map or "linear", **how, "BLOCK": BLOCK, "LEVELS": LEVELS}
        bounds = (values, values)  # which kernels of whole parameters do not read
        own = (table, plan.blocks, *scratches, *bounds, values, thresholds)
        apply_kernel[(len(plan.blocks),)](*own, weights[0], *move, **types, **options, **APPLY_LAUNCH)
    if others:
        over_others(apply=True)


def _table(plan: Plan, works: list[Work]) -> Tensor:
    """The table of the plan with the addresses and keys of one step filled in."""
    table = plan.table.clone()
    rows = []
    for work in works:
        state = work.state
        packed = "momentum_codes" in state
        square = state["square_row"] if "square_row" in state else state["square"]
        tensors = (
            work.parameter,
            work.gradient,
            state["momentum_codes" if packed else "momentum"],
            state.get("momentum_scale"),
            state.get("momentum_minimum"),
            square,
            *(state.get(name) for name in ("square_column", "instability_row", "instability_column")),
        )
        rows.append([*(0 if one is None else one.data_ptr() for one in tensors), packed, *(work.key or (0, 0))])
    numbers = torch.tensor(rows, dtype=torch.int64)
    table[:, :9], table[:, PACKED.value] = numbers[:, :9], numbers[:, 9]
    table[:, KEY.value : KEY_2.value + 1] = numbers[:, 10:]
    # From pinned memory the copy to the GPU does not hold up the CPU.
    return table.pin_memory() if works[0].parameter.is_cuda else table


def ahead_of_time() -> list[Build]:
    """Every kernel at the sizes of real runs, for parameters and gradients both bfloat16 or both float32.

    Kernels of the dynamic map are listed for bfloat16 alone.
    """
    sizes = {"STRIP": TILE["STRIP"], "TILE_ROWS": TILE["ROWS"], "TILE_COLUMNS": TILE["COLUMNS"]}
    statistic = {"CHUNK": CHUNK, "STRIP": TILE["STRIP"], "TILE_COLUMNS": TILE["COLUMNS"]}
    builds = [
        build_of(statistics_kernel, {"ROW": SQUARE_ROW.value, "COLUMN": SQUARE_COLUMN.value, **statistic}),
        build_of(totals_kernel, {"CHUNK": CHUNK}),
    ]
    for dtype in (tl.float32, tl.bfloat16):
        types = {"PARAMETER_TYPE": dtype, "GRADIENT_TYPE": dtype}
        how = {"STOCHASTIC": dtype == tl.bfloat16, "SHARDED": False, "ALIGNED": True, "BLOCK": BLOCK}
        maps = ("linear", "dynamic") if dtype == tl.bfloat16 else ("linear",)
        for which, launch in TILES_LAUNCH.items():
            # The first two passes do not read the momentum, so the map makes no difference to them.
            for map in maps if which == SURPRISE.value else maps[:1]:
                options = {"MAP": map, "PASS": which, "SHARDED": False, "ALIGNED": True, **sizes}
                builds.append(build_of(tiles_kernel, {"GRADIENT_TYPE": dtype, **options}, launch))
        for map in maps:
            builds.append(build_of(apply_kernel, {**types, "MAP": map, **how, "LEVELS": LEVELS}, APPLY_LAUNCH))
        for apply in (False, True):
            builds.append(build_of(others_kernel, {**types, "APPLY": apply, **how}))
    return builds


def build_of(
    kernel: triton.JITFunction, constants: dict[str, object], launch: Mapping[str, int] = MappingProxyType({})
) -> Build:
    """One kernel with the types that its arguments have in `step`, whole parameters' or shards'."""
    integers = {"table": "*i64", "owners": "*i32", "starts": "*i32"}
    numbers = {name: "fp32" for name in NUMBERS}
    arguments = [name for name in kernel.arg_names if name not in constants]
    types = {name: integers.get(name) or numbers.get(name, "*fp32") for name in arguments}
    # These may be parts of larger memory that begin anywhere. All other tensors are allocated by themselves.
    parts = {"norms", "lower", "upper"}
    aligned = frozenset(name for name in arguments if types[name].startswith("*") and name not in parts)
    return Build(kernel, types, constants, aligned, launch)
