"""The CAME step of parameters that are alike in eleven launches, however many. Mathematics and state as in `update`.

Alike are those of one device, of the same dtypes and settings, that both can or both cannot be read 16 bytes at a time.
The kernels find their work in a table with a row for each parameter: addresses, sizes and places in scratch memory. The
statistics of a matrix are needed whole before its entries can move, so it is gone over four times, first in tiles, last
in blocks of 2048 entries of the flattened matrix, as it is quantised:

    squares    read g               row and column sums of g^2
    norms      read g               sum of u^2
    surprise   read g, codes        row and column sums of (u - m)^2
    apply      read g, codes, p     write codes, p

In bytes for each entry of an 8-bit matrix, with float32 parameters and gradients: 4 + 4 + 5 + 14 = 27, of which the
last pass's 14 are the least that any CAME-8bit must move; with bfloat16: 2 + 2 + 3 + 8 = 15, of which 8. Between
the passes small kernels add up what tiles left, in a fixed order, so that runs repeat to the bit. u is computed anew in
each pass: scratch memory holds sums only, less than 0.04 bytes for each entry of large matrices.

Parameters, gradients and states are contiguous and whole; a matrix has fewer than 2^31 entries and 2^20 columns.
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ahead_of_time import Build
from kernels.blockwise import BLOCK, Map, dynamic
from kernels.blockwise.linear import LEVELS
from kernels.blockwise.triton_kernel import encode_dynamic, encode_linear
from kernels.came8bit.state import Work, is_matrix

TILE = {"STRIP": 512, "ROWS": 16, "COLUMNS": 256}
"""A program of a pass in tiles walks down STRIP rows of COLUMNS columns, ROWS at a time."""
CHUNK = 1024
"""Entries of a row or column statistic that one program updates."""
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}

FIELDS = tl.constexpr(20)
(PARAMETER, GRADIENT, MOMENTUM, SCALE, MINIMUM, SQUARE_ROW, SQUARE_COLUMN, INSTABILITY_ROW, INSTABILITY_COLUMN) = (
    tl.constexpr(field) for field in range(9)
)
(ROWS, COLUMNS, PACKED, FIRST_TILE, FIRST_CHUNK, FIRST_BLOCK, ROW_SUMS, COLUMN_SUMS, FACTORS, KEY, KEY_2) = (
    tl.constexpr(field) for field in range(9, 20)
)
SQUARES, NORMS, SURPRISE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BLOCK_ENTRIES = tl.constexpr(BLOCK)


@triton.jit
def field(table, index, FIELD: tl.constexpr):
    """A number of a parameter's row."""
    return tl.load(table + index * FIELDS + FIELD)


@triton.jit
def pointer(table, index, FIELD: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """An address of a parameter's row, a multiple of 16 if ALIGNED: then a thread moves 16 bytes at once."""
    address = tl.load(table + index * FIELDS + FIELD).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def width_of(table, index, ALIGNED: tl.constexpr):
    """The columns of a matrix, a multiple of 16 if ALIGNED."""
    columns = field(table, index, COLUMNS).to(tl.int32)
    if ALIGNED:
        columns = tl.multiple_of(columns, 16)
    return columns


@triton.jit
def clip_of(norms, index, entries):
    """What scales an update of `entries` entries and squared norm `norms[index]` down to a root mean square of 1."""
    return tl.minimum(tl.sqrt(entries.to(tl.float32) / tl.load(norms + index)), 1.0)


@triton.jit
def load_momentum(table, index, place, inside, block, values, MAP: tl.constexpr, ALIGNED: tl.constexpr):
    """The momentum at these places of the flattened matrix, which lie in block or blocks `block`."""
    if field(table, index, PACKED) != 0:
        code = tl.load(pointer(table, index, MOMENTUM, tl.uint8, ALIGNED) + place, mask=inside, other=0)
        scale = tl.load(pointer(table, index, SCALE, tl.float32, ALIGNED) + block)
        if MAP == "dynamic":
            momentum = tl.load(values + code.to(tl.int32)) * scale
        else:
            minimum = tl.load(pointer(table, index, MINIMUM, tl.float32, ALIGNED) + block)
            momentum = code.to(tl.float32) * scale + minimum
    else:
        momentum = tl.load(pointer(table, index, MOMENTUM, tl.float32, ALIGNED) + place, mask=inside, other=0.0)
    return momentum


@triton.jit
def tiles_kernel(
    table,
    owners,
    parts,
    factors,
    row_totals,
    norms,
    norm_totals,
    values,
    weight,
    GRADIENT_TYPE: tl.constexpr,
    MAP: tl.constexpr,
    PASS: tl.constexpr,
    ALIGNED: tl.constexpr,
    STRIP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """The sums of one tile: by row and column of g^2 or of (u - m)^2, or of all u^2. `weight` is 1 - beta1."""
    index = tl.load(owners + tl.program_id(0))
    rows, columns = field(table, index, ROWS).to(tl.int32), width_of(table, index, ALIGNED)
    tile = tl.program_id(0) - field(table, index, FIRST_TILE).to(tl.int32)
    across = tl.cdiv(columns, TILE_COLUMNS)
    column = tile % across * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    gradient = pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED)
    if PASS != SQUARES:
        factor = factors + field(table, index, FACTORS)
        column_factor = tl.load(factor + rows + column, mask=column < columns, other=0.0)
        root = tl.sqrt(tl.load(row_totals + index) / rows.to(tl.float32))
    if PASS == SURPRISE:
        clip = clip_of(norm_totals, index, rows * columns)
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    first = tile // across * STRIP
    for start in range(first, min(first + STRIP, rows), TILE_ROWS):
        row = start + tl.arange(0, TILE_ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        place = row[:, None] * columns + column[None, :]
        x = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        if PASS != SQUARES:
            row_factor = tl.load(factor + row, mask=row < rows, other=0.0) * root
            x = x * row_factor[:, None] * column_factor[None, :]
        if PASS == SURPRISE:
            block = tl.where(inside, place // BLOCK_ENTRIES, 0)
            old = load_momentum(table, index, place, inside, block, values, MAP, ALIGNED)
            update = x * clip
            x = tl.where(inside, update - (old + (update - old) * weight), 0.0)
        square = x * x
        total += square
        if PASS != NORMS:
            row_sums = parts + field(table, index, ROW_SUMS) + tile % across * rows
            tl.store(row_sums + row, tl.sum(square, axis=1), mask=row < rows)
    by_column = tl.sum(total, axis=0)
    if PASS == NORMS:
        tl.store(norms + tl.program_id(0), tl.sum(by_column, axis=0))
    else:
        column_sums = parts + field(table, index, COLUMN_SUMS) + tile // across * columns
        tl.store(column_sums + column, by_column, mask=column < columns)


@triton.jit
def statistics_kernel(
    table,
    owners,
    parts,
    factors,
    row_sums,
    weight,
    floor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    CHUNK: tl.constexpr,
    STRIP: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Move one chunk of a row or column statistic (fields ROW, COLUMN) towards the means that the tiles' sums give.

    Its inverse roots go to `factors`, and the new sum over a chunk of rows to `row_sums`. `weight` is 1 - beta.
    """
    index = tl.load(owners + tl.program_id(0))
    rows, columns = field(table, index, ROWS).to(tl.int32), field(table, index, COLUMNS).to(tl.int32)
    chunk = tl.program_id(0) - field(table, index, FIRST_CHUNK).to(tl.int32)
    row_chunks = tl.cdiv(rows, CHUNK)
    if chunk < row_chunks:
        statistic, factor = pointer(table, index, ROW, tl.float32, False), factors + field(table, index, FACTORS)
        part, length, other = parts + field(table, index, ROW_SUMS), rows, columns
        count, start = tl.cdiv(columns, TILE_COLUMNS), chunk * CHUNK
    else:
        statistic, factor = (
            pointer(table, index, COLUMN, tl.float32, False),
            factors + field(table, index, FACTORS) + rows,
        )
        part, length, other = parts + field(table, index, COLUMN_SUMS), columns, rows
        count, start = tl.cdiv(rows, STRIP), (chunk - row_chunks) * CHUNK
    entry = start + tl.arange(0, CHUNK)
    inside = entry < length
    total = tl.zeros([CHUNK], tl.float32)
    for piece in range(0, count):
        total += tl.load(part + piece * length + entry, mask=inside, other=0.0)
    old = tl.load(statistic + entry, mask=inside, other=1.0)
    new = old + (total / other.to(tl.float32) + floor - old) * weight
    tl.store(statistic + entry, new, mask=inside)
    tl.store(factor + entry, tl.rsqrt(new), mask=inside)
    by_rows = tl.where(inside & (chunk < row_chunks), new, 0.0)
    tl.store(row_sums + tl.program_id(0), tl.sum(by_rows, axis=0))


@triton.jit
def totals_kernel(values, starts, totals, CHUNK: tl.constexpr):
    """Add up `values[starts[i] : starts[i + 1]]` for i = `program_id(0)`."""
    start, end = tl.load(starts + tl.program_id(0)), tl.load(starts + tl.program_id(0) + 1)
    total = tl.zeros([CHUNK], tl.float32)
    for piece in range(start, end, CHUNK):
        entry = piece + tl.arange(0, CHUNK)
        total += tl.load(values + entry, mask=entry < end, other=0.0)
    tl.store(totals + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def mixed(x):
    """As `rounding._mixed`."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def key_part(table, index, FIELD: tl.constexpr):
    """32 bits of a parameter's key."""
    return field(table, index, FIELD).to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def to_bfloat16(x, table, index, place, STOCHASTIC: tl.constexpr):
    """float32 rounded to bfloat16: to nearest, halves to even, or as `rounding.to_bfloat16`."""
    bits = x.to(tl.uint32, bitcast=True)
    if STOCHASTIC:
        entry = place.to(tl.uint32, bitcast=True)
        added = mixed(mixed(entry ^ key_part(table, index, KEY)) ^ key_part(table, index, KEY_2)) & 0xFFFF
    else:
        added = ((bits >> 16) & 1) + 0x7FFF
    rounded = ((bits + added) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), rounded, x).to(tl.bfloat16)


@triton.jit
def descend(
    table,
    index,
    place,
    inside,
    movement,
    lr,
    decay,
    TYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """p <- p - decay * p - lr * movement at these places; `decay` is lr * weight_decay."""
    parameter = pointer(table, index, PARAMETER, TYPE, ALIGNED) + place
    p = tl.load(parameter, mask=inside, other=0.0).to(tl.float32)
    p = p - decay * p
    if TYPE == tl.bfloat16:
        if not STOCHASTIC:
            # as the reference, which decays a bfloat16 before it steps
            p = to_bfloat16(p, table, index, place, False).to(tl.float32)
        tl.store(parameter, to_bfloat16(p - lr * movement, table, index, place, STOCHASTIC), mask=inside)
    else:
        tl.store(parameter, p - lr * movement, mask=inside)


@triton.jit
def apply_kernel(
    table,
    owners,
    factors,
    next_factors,
    square_totals,
    norm_totals,
    instability_totals,
    values,
    thresholds,
    weight,
    lr,
    decay,
    PARAMETER_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    MAP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Move one block of a matrix's parameter and momentum. `weight` is 1 - beta1."""
    index = tl.load(owners + tl.program_id(0))
    rows, columns = field(table, index, ROWS).to(tl.int32), width_of(table, index, ALIGNED)
    block = tl.program_id(0) - field(table, index, FIRST_BLOCK).to(tl.int32)
    entry = tl.arange(0, BLOCK)
    place = block * BLOCK + entry
    inside = place < rows * columns
    # entry / columns without a division: exact below 2^21, where the half keeps the product off the integers
    shifted = block * BLOCK % columns + entry
    below = ((shifted.to(tl.float32) + 0.5) * (1.0 / columns.to(tl.float32))).to(tl.int32)
    row, column = block * BLOCK // columns + below, shifted - below * columns
    first = field(table, index, FACTORS)
    square_root = tl.sqrt(tl.load(square_totals + index) / rows.to(tl.float32))
    square_row = tl.load(factors + first + row, mask=inside, other=0.0) * square_root
    square_column = tl.load(factors + first + rows + column, mask=inside, other=0.0)
    g = tl.load(pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED) + place, mask=inside, other=0.0).to(tl.float32)
    update = g * square_row * square_column * clip_of(norm_totals, index, rows * columns)
    old = load_momentum(table, index, place, inside, block, values, MAP, ALIGNED)
    momentum = old + (update - old) * weight
    root = tl.sqrt(tl.load(instability_totals + index) / rows.to(tl.float32))
    row_factor = tl.load(next_factors + first + row, mask=inside, other=0.0) * root
    column_factor = tl.load(next_factors + first + rows + column, mask=inside, other=0.0)
    movement = momentum * row_factor * column_factor
    descend(table, index, place, inside, movement, lr, decay, PARAMETER_TYPE, STOCHASTIC, ALIGNED)
    if field(table, index, PACKED) != 0:
        scales = pointer(table, index, SCALE, tl.float32, ALIGNED) + block
        if MAP == "dynamic":
            code, scale = encode_dynamic(momentum, inside, thresholds)
        else:
            code, scale, minimum = encode_linear(momentum, inside, LEVELS)
            tl.store(pointer(table, index, MINIMUM, tl.float32, ALIGNED) + block, minimum)
        tl.store(scales, scale)
        tl.store(pointer(table, index, MOMENTUM, tl.uint8, ALIGNED) + place, code, mask=inside)
    else:
        tl.store(pointer(table, index, MOMENTUM, tl.float32, ALIGNED) + place, momentum, mask=inside)


@triton.jit
def others_kernel(
    table,
    owners,
    norms,
    norm_totals,
    weight,
    square_weight,
    floor,
    lr,
    decay,
    PARAMETER_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    APPLY: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of a parameter that is no matrix: its mean of squares and the norm of its update, or its move."""
    index = tl.load(owners + tl.program_id(0))
    entries = field(table, index, ROWS).to(tl.int32)
    if ALIGNED:
        entries = tl.multiple_of(entries, 16)
    place = (tl.program_id(0) - field(table, index, FIRST_BLOCK).to(tl.int32)) * BLOCK + tl.arange(0, BLOCK)
    inside = place < entries
    g = tl.load(pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED) + place, mask=inside, other=0.0).to(tl.float32)
    squares = pointer(table, index, SQUARE_ROW, tl.float32, ALIGNED) + place
    square = tl.load(squares, mask=inside, other=1.0)
    if APPLY:
        momenta = pointer(table, index, MOMENTUM, tl.float32, ALIGNED) + place
        old = tl.load(momenta, mask=inside, other=0.0)
        update = g * tl.rsqrt(square) * clip_of(norm_totals, index, entries)
        momentum = old + (update - old) * weight
        tl.store(momenta, momentum, mask=inside)
        descend(table, index, place, inside, momentum, lr, decay, PARAMETER_TYPE, STOCHASTIC, ALIGNED)
    else:
        square = square + (g * g + floor - square) * square_weight
        tl.store(squares, square, mask=inside)
        update = g * tl.rsqrt(square)
        tl.store(norms + tl.program_id(0), tl.sum(update * update, axis=0))


class Plan(NamedTuple):
    """How the programs of the kernels share parameters of certain shapes: matrices first, then all others.

    `table` is without addresses and keys. `tiles`, `chunks`, `blocks`, `other_blocks` name each program's
    parameter; `chunk_starts` and `norm_starts` say where each parameter's numbers begin in `row_sums` and `norms`. The
    last two are the floats that the scratch tensors `parts` and `factors` hold.
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


@lru_cache(maxsize=64)  # in the backward pass every shape of large matrices has one of its own
def plan_of(matrices: tuple[tuple[int, int], ...], others: tuple[int, ...], device: torch.device) -> Plan:
    """The plan for matrices of these rows and columns, and others of these sizes."""
    rows, columns = (
        torch.tensor(sizes, dtype=torch.int64) for sizes in (zip(*matrices, strict=True) if matrices else ((), ()))
    )
    sizes = torch.tensor(others, dtype=torch.int64)
    strips, across = _cdiv(rows, TILE["STRIP"]), _cdiv(columns, TILE["COLUMNS"])
    chunks, blocks = _cdiv(rows, CHUNK) + _cdiv(columns, CHUNK), _cdiv(rows * columns, BLOCK)
    other_blocks = _cdiv(sizes, BLOCK)
    table = torch.zeros(len(matrices) + len(others), FIELDS.value, dtype=torch.int64)
    of_matrices, of_others = table[: len(matrices)], table[len(matrices) :]
    row_sums, column_sums = across * rows, strips * columns
    for name, numbers in (
        (ROWS, rows),
        (COLUMNS, columns),
        (FIRST_TILE, _starts(strips * across)[:-1]),
        (FIRST_CHUNK, _starts(chunks)[:-1]),
        (FIRST_BLOCK, _starts(blocks)[:-1]),
        (ROW_SUMS, _starts(row_sums)[:-1]),
        (COLUMN_SUMS, _starts(column_sums)[:-1] + row_sums.sum()),
        (FACTORS, _starts(rows + columns)[:-1]),
    ):
        of_matrices[:, name.value] = numbers
    of_others[:, ROWS.value], of_others[:, FIRST_BLOCK.value] = sizes, _starts(other_blocks)[:-1]

    def owners(counts: Tensor, first: int = 0) -> Tensor:
        return torch.repeat_interleave(torch.arange(first, first + len(counts)), counts).int().to(device)

    return Plan(
        table,
        owners(strips * across),
        owners(chunks),
        owners(blocks),
        owners(other_blocks, len(matrices)),
        _starts(chunks).int().to(device),
        _starts(torch.cat([strips * across, other_blocks])).int().to(device),
        int((row_sums + column_sums).sum()),
        int((rows + columns).sum()),
    )


def _cdiv(sizes: Tensor, size: int) -> Tensor:
    return (sizes + size - 1) // size


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def scratch(plan: Plan, device: torch.device) -> dict[str, Tensor]:
    """The memory that a step needs beside parameters, gradients and states, but for the plan: sums, and no entries."""

    def floats(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float32, device=device)

    matrices, parameters = len(plan.chunk_starts) - 1, len(plan.norm_starts) - 1
    return {
        "parts": floats(plan.parts),  # row and column sums of tiles
        "factors": floats(plan.factors),  # inverse roots of the rows' and columns' means of squares
        "next_factors": floats(plan.factors),  # the same of instabilities
        "row_sums": floats(len(plan.chunks)),
        "square_totals": floats(matrices),
        "instability_totals": floats(matrices),
        "norms": floats(len(plan.tiles) + len(plan.other_blocks)),
        "norm_totals": floats(parameters),
    }


def step(works: list[Work], map: Map | None) -> None:
    """Update parameters and states in place: one set of launches for those of like dtypes."""
    alike: dict[Hashable, list[Work]] = {}
    for work in works:
        dtypes = (work.parameter.dtype, work.gradient.dtype, work.key is None)
        kind = (work.parameter.device, dtypes, work.settings, _is_aligned(work))
        alike.setdefault(kind, []).append(work)
    for same in alike.values():
        _step_alike(same, map, _is_aligned(same[0]))


def _is_aligned(work: Work) -> bool:
    """Whether a thread can move 16 bytes of each tensor, row by row too."""
    tensors = (work.parameter, work.gradient, *work.state.values())
    width = work.parameter.shape[1] if is_matrix(work.parameter) else work.parameter.numel()
    return width % 16 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _step_alike(works: list[Work], map: Map | None, aligned: bool) -> None:
    """Update parameters of one device, dtype, settings and alignment."""
    matrices = [work for work in works if is_matrix(work.parameter)]
    others = [work for work in works if not is_matrix(work.parameter)]
    device, settings = works[0].parameter.device, works[0].settings
    shapes = tuple((work.parameter.shape[0], work.parameter.shape[1]) for work in matrices)
    plan = plan_of(shapes, tuple(work.parameter.numel() for work in others), device)
    table, room = _table(plan, matrices + others).to(device, non_blocking=True), scratch(plan, device)
    weights = [1 - beta for beta in settings.betas]
    types = {"PARAMETER_TYPE": TYPES[works[0].parameter.dtype], "GRADIENT_TYPE": TYPES[works[0].gradient.dtype]}
    move = (settings.lr, settings.lr * settings.weight_decay)
    how = {"STOCHASTIC": works[0].key is not None, "ALIGNED": aligned}
    values, thresholds = dynamic.values(device), dynamic.thresholds(device)
    sizes = {"STRIP": TILE["STRIP"], "TILE_ROWS": TILE["ROWS"], "TILE_COLUMNS": TILE["COLUMNS"]}

    def over_tiles(which: tl.constexpr) -> None:
        scratches = (room["parts"], room["factors"], room["square_totals"], room["norms"], room["norm_totals"])
        options = {
            "GRADIENT_TYPE": types["GRADIENT_TYPE"],
            "MAP": map or "linear",
            "PASS": which.value,
            "ALIGNED": aligned,
            **sizes,
        }
        tiles_kernel[(len(plan.tiles),)](table, plan.tiles, *scratches, values, weights[0], **options)

    def statistics(
        weight: float, floor: float, row: tl.constexpr, column: tl.constexpr, factors: str, totals: str
    ) -> None:
        scratches = (room["parts"], room[factors], room["row_sums"])
        options = {"CHUNK": CHUNK, "STRIP": TILE["STRIP"], "TILE_COLUMNS": TILE["COLUMNS"]}
        fields = {"ROW": row.value, "COLUMN": column.value}
        statistics_kernel[(len(plan.chunks),)](table, plan.chunks, *scratches, weight, floor, **fields, **options)
        totals_kernel[(len(matrices),)](room["row_sums"], plan.chunk_starts, room[totals], CHUNK=CHUNK)

    def over_others(apply: bool) -> None:
        own = (table, plan.other_blocks, room["norms"][len(plan.tiles) :], room["norm_totals"])
        numbers = (*weights[:2], settings.eps[0], *move)
        others_kernel[(len(plan.other_blocks),)](*own, *numbers, **types, APPLY=apply, **how, BLOCK=BLOCK)

    if matrices:
        over_tiles(SQUARES)
        statistics(weights[1], settings.eps[0], SQUARE_ROW, SQUARE_COLUMN, "factors", "square_totals")
        over_tiles(NORMS)
    if others:
        over_others(apply=False)
    totals_kernel[(len(works),)](room["norms"], plan.norm_starts, room["norm_totals"], CHUNK=CHUNK)
    if matrices:
        over_tiles(SURPRISE)
        statistics(
            weights[2], settings.eps[1], INSTABILITY_ROW, INSTABILITY_COLUMN, "next_factors", "instability_totals"
        )
        scratches = [
            room[name] for name in ("factors", "next_factors", "square_totals", "norm_totals", "instability_totals")
        ]
        options = {"MAP": map or "linear", **how, "BLOCK": BLOCK, "LEVELS": LEVELS}
        own = (table, plan.blocks, *scratches, values, thresholds)
        apply_kernel[(len(plan.blocks),)](*own, weights[0], *move, **types, **options)
    if others:
        over_others(apply=True)


def _table(plan: Plan, works: list[Work]) -> Tensor:
    """The plan's table with the addresses and keys of a step."""
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
    table[:, :9], table[:, PACKED.value], table[:, KEY.value :] = numbers[:, :9], numbers[:, 9], numbers[:, 10:]
    return table.pin_memory() if works[0].parameter.is_cuda else table


def ahead_of_time() -> list[Build]:
    """Every kernel with bfloat16 parameters, and the largest with float32 too, at the sizes of real runs."""
    integers = {"table": "*i64", "owners": "*i32", "starts": "*i32"}
    numbers = {name: "fp32" for name in ("weight", "square_weight", "floor", "lr", "decay")}
    sizes = {"STRIP": TILE["STRIP"], "TILE_ROWS": TILE["ROWS"], "TILE_COLUMNS": TILE["COLUMNS"]}
    statistic = {"CHUNK": CHUNK, "STRIP": TILE["STRIP"], "TILE_COLUMNS": TILE["COLUMNS"]}
    builds = [
        (statistics_kernel, {"ROW": SQUARE_ROW.value, "COLUMN": SQUARE_COLUMN.value, **statistic}),
        (totals_kernel, {"CHUNK": CHUNK}),
    ]
    for dtype in (tl.float32, tl.bfloat16):
        types = {"PARAMETER_TYPE": dtype, "GRADIENT_TYPE": dtype}
        for chosen in (SQUARES, NORMS, SURPRISE) if dtype == tl.bfloat16 else (SURPRISE,):
            builds.append(
                (
                    tiles_kernel,
                    {"GRADIENT_TYPE": dtype, "MAP": "linear", "PASS": chosen.value, "ALIGNED": True, **sizes},
                )
            )
        for map in ("linear", "dynamic") if dtype == tl.bfloat16 else ("linear",):
            options = {
                "MAP": map,
                "STOCHASTIC": dtype == tl.bfloat16,
                "ALIGNED": True,
                "BLOCK": BLOCK,
                "LEVELS": LEVELS,
            }
            builds.append((apply_kernel, {**types, **options}))
        for apply in (False, True) if dtype == tl.bfloat16 else (True,):
            builds.append(
                (others_kernel, {**types, "APPLY": apply, "STOCHASTIC": False, "ALIGNED": True, "BLOCK": BLOCK})
            )

    def typed(kernel: Any, constants: dict[str, Any]) -> Build:
        arguments = [name for name in kernel.arg_names if name not in constants]
        return Build(kernel, {name: integers.get(name) or numbers.get(name, "*fp32") for name in arguments}, constants)

    return [typed(kernel, constants) for kernel, constants in builds]
