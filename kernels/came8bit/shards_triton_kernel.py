"""The Triton kernels that a CAME step needs on shards beside those of `triton_kernel`.

Between them stand collectives: a message is what processes add up, or take the greatest of.
"""

import triton
import triton.language as tl

from kernels.blockwise.triton_kernel import bound_dynamic, bounds_linear
from kernels.came8bit.triton_kernel import (
    BOUNDS,
    COLUMN_SUMS,
    COLUMNS,
    FIRST_BLOCK,
    FIRST_COLUMN_CHUNK,
    MESSAGE,
    PACKED,
    ROWS,
    SKIPPED,
    WHOLE_ROWS,
    block_of,
    factors_of,
    field,
    first_row_of,
    momentum_after,
    momentum_of,
    pointer,
    width_of,
)


@triton.jit
def column_sums_kernel(table, owners, parts, message, CHUNK: tl.constexpr, STRIP: tl.constexpr):
    """Add up what the tiles of the rows here left of one chunk of columns, into the message."""
    index = tl.load(owners + tl.program_id(0))
    rows, columns = field(table, index, ROWS).to(tl.int32), field(table, index, COLUMNS).to(tl.int32)
    chunk = tl.program_id(0) - field(table, index, FIRST_COLUMN_CHUNK).to(tl.int32)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = column < columns
    part = parts + field(table, index, COLUMN_SUMS)
    total = tl.zeros([CHUNK], tl.float32)
    for piece in range(0, tl.cdiv(rows, STRIP)):
        total += tl.load(part + piece * columns + column, mask=inside, other=0.0)
    tl.store(message + field(table, index, MESSAGE) + column, total, mask=inside)


@triton.jit
def columns_kernel(table, owners, message, factors, weight, floor, COLUMN: tl.constexpr, CHUNK: tl.constexpr):
    """Move one chunk of a column statistic (field COLUMN) towards the means of the message's sums over all rows.

    The inverse roots of the statistic go to `factors`. `weight` is 1 - beta.
    """
    index = tl.load(owners + tl.program_id(0))
    if field(table, index, SKIPPED) != 0:
        return
    columns = field(table, index, COLUMNS).to(tl.int32)
    chunk = tl.program_id(0) - field(table, index, FIRST_COLUMN_CHUNK).to(tl.int32)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = column < columns
    statistic = pointer(table, index, COLUMN, tl.float32, False)
    column_factors, _ = factors_of(table, index, factors, columns)
    total = tl.load(message + field(table, index, MESSAGE) + column, mask=inside, other=0.0)
    old = tl.load(statistic + column, mask=inside, other=1.0)  # 1 beyond the end, whose inverse root is finite
    new = old + (total / field(table, index, WHOLE_ROWS).to(tl.float32) + floor - old) * weight
    tl.store(statistic + column, new, mask=inside)
    tl.store(column_factors + column, tl.rsqrt(new), mask=inside)


@triton.jit
def bounds_kernel(
    table,
    owners,
    factors,
    square_totals,
    norm_totals,
    lower,
    upper,
    values,
    weight,
    GRADIENT_TYPE: tl.constexpr,
    MAP: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bounds of what is here of one block of the momentum after this step.

    They are -min in `lower` and max in `upper`, or under the dynamic map the largest magnitude in `upper` alone.
    `weight` is 1 - beta1.
    """
    index = tl.load(owners + tl.program_id(0))
    if field(table, index, PACKED) != 0:
        rows, columns = field(table, index, ROWS).to(tl.int32), width_of(table, index, ALIGNED)
        whole_rows, first_row = field(table, index, WHOLE_ROWS).to(tl.int32), first_row_of(table, index, True)
        block = tl.program_id(0) - field(table, index, FIRST_BLOCK).to(tl.int32)
        where = block_of(rows, columns, first_row, block, True, ALIGNED, BLOCK)
        known = (block, columns, whole_rows, momentum_of(table, index, ALIGNED))
        scratches = (factors, square_totals, norm_totals, values, weight)
        momentum = momentum_after(table, index, where, *known, *scratches, GRADIENT_TYPE, MAP, ALIGNED)
        bound, inside = field(table, index, BOUNDS) + block, where[3]
        if MAP == "dynamic":
            tl.store(upper + bound, bound_dynamic(momentum, inside))
        else:
            minimum, maximum = bounds_linear(momentum, inside)
            tl.store(lower + bound, -minimum)
            tl.store(upper + bound, maximum)
