"""The Triton kernels of the CAME step. `step_in_triton` launches them and says what each pass is for.

A program finds its work in a table with a row of FIELDS numbers for each parameter: addresses, sizes, whether the
momentum is in 8 bits, places in scratch memory, the key of stochastic rounding, and whether its step is skipped. Then
the kernels that write parameters and states write nothing.

If SHARDED, a process holds some rows of each parameter. Addresses begin at its first row, and rows and entries are
counted from there. So the compiler knows of addresses what it knows of whole parameters': they are multiples of 16.
Blocks of 8-bit momentum, and the places that random bits depend on, are counted from where the whole parameter begins.
"""

import triton
import triton.language as tl

from kernels.blockwise import BLOCK
from kernels.blockwise.triton_kernel import codes_dynamic, codes_linear, encode_dynamic, encode_linear

FIELDS = tl.constexpr(26)
# The fields of a row: first the addresses, then sizes, places in scratch memory, the two halves of the key, and whether
# the step is skipped.
(PARAMETER, GRADIENT, MOMENTUM, SCALE, MINIMUM, SQUARE_ROW, SQUARE_COLUMN, INSTABILITY_ROW, INSTABILITY_COLUMN) = (
    tl.constexpr(field) for field in range(9)
)
# FIRST_BLOCK is the program that has block 0 of the whole parameter, or would have it if the block were here.
(ROWS, COLUMNS, PACKED, FIRST_TILE, FIRST_CHUNK, FIRST_BLOCK, ROW_SUMS, COLUMN_SUMS, FACTORS, KEY, KEY_2, SKIPPED) = (
    tl.constexpr(field) for field in range(9, 21)
)
# These are read of shards alone. For a parameter that is no matrix, rows are entries.
FIRST_ROW, WHOLE_ROWS, FIRST_COLUMN_CHUNK, MESSAGE, BOUNDS = (tl.constexpr(field) for field in range(21, 26))
SQUARES, NORMS, SURPRISE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BLOCK_ENTRIES = tl.constexpr(BLOCK)


@triton.jit
def field(table, index, FIELD: tl.constexpr):
    """One number of a parameter's row of the table."""
    return tl.load(table + index * FIELDS + FIELD)


@triton.jit
def pointer(table, index, FIELD: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """An address from a parameter's row. If ALIGNED it is a multiple of 16, and a thread moves 16 bytes at once."""
    address = tl.load(table + index * FIELDS + FIELD).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def width_of(table, index, ALIGNED: tl.constexpr):
    """How many columns a matrix has; a multiple of 16 if ALIGNED."""
    columns = field(table, index, COLUMNS).to(tl.int32)
    if ALIGNED:
        columns = tl.multiple_of(columns, 16)
    return columns


@triton.jit
def whole_of(table, index, rows, SHARDED: tl.constexpr):
    """How many rows the whole parameter has, of which `rows` are here."""
    if SHARDED:
        rows = field(table, index, WHOLE_ROWS).to(tl.int32)
    return rows


@triton.jit
def first_row_of(table, index, SHARDED: tl.constexpr):
    """How many rows of the whole parameter lie before the first one that is here."""
    first = 0
    if SHARDED:
        first = field(table, index, FIRST_ROW).to(tl.int32)
    return first


@triton.jit
def factors_of(table, index, factors, columns):
    """Where the column factors of a matrix begin, at a multiple of 16 bytes, and where its row factors follow."""
    first = tl.multiple_of(factors + field(table, index, FACTORS), 16)
    return first, first + columns


@triton.jit
def clip_of(norms, index, entries):
    """The factor that scales an update of squared norm `norms[index]` down to a root mean square of 1, or 1."""
    return tl.minimum(tl.sqrt(entries.to(tl.float32) / tl.load(norms + index)), 1.0)


@triton.jit
def momentum_of(table, index, ALIGNED: tl.constexpr):
    """Whether the momentum of a matrix is in 8 bits, and where it lies: codes, scales and minima, or floats."""
    packed = field(table, index, PACKED) != 0
    codes = pointer(table, index, MOMENTUM, tl.uint8, ALIGNED)
    scales = pointer(table, index, SCALE, tl.float32, ALIGNED)
    minima = pointer(table, index, MINIMUM, tl.float32, ALIGNED)
    # The same address as `codes`: the momentum is one or the other.
    floats = pointer(table, index, MOMENTUM, tl.float32, ALIGNED)
    return packed, codes, scales, minima, floats


@triton.jit
def load_of_blocks(numbers, place, first, last, border):
    """The scale or minimum of the block of each place.

    The block is `last` from the place `border` on, and `first` before it. If `last` is None it is `first` everywhere.
    """
    number = tl.load(numbers + first)
    if last is not None:
        number = tl.where(place < border, number, tl.load(numbers + last))
    return number


@triton.jit
def load_momentum(momentum, place, inside, first, last, border, values, MAP: tl.constexpr):
    """The momentum at these places of the flattened rows; `first`, `last`, `border` are as in `load_of_blocks`."""
    packed, codes, scales, minima, floats = momentum
    if packed:
        code = tl.load(codes + place, mask=inside, other=0)
        scale = load_of_blocks(scales, place, first, last, border)
        if MAP == "dynamic":
            loaded = tl.load(values + code.to(tl.int32)) * scale
        else:
            loaded = code.to(tl.float32) * scale + load_of_blocks(minima, place, first, last, border)
    else:
        loaded = tl.load(floats + place, mask=inside, other=0.0)
    return loaded


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
    SHARDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    STRIP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """The sums of one tile: of g^2 or (u - m)^2 by row and by column, or of all u^2. `weight` is 1 - beta1."""
    index = tl.load(owners + tl.program_id(0))
    rows, columns = field(table, index, ROWS).to(tl.int32), width_of(table, index, ALIGNED)
    tile = tl.program_id(0) - field(table, index, FIRST_TILE).to(tl.int32)
    across = tl.cdiv(columns, TILE_COLUMNS)
    first_column = tile % across * TILE_COLUMNS
    last_column = min(first_column + TILE_COLUMNS, columns) - 1
    column = first_column + tl.arange(0, TILE_COLUMNS)
    gradient = pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED)
    if PASS != SQUARES:
        column_factors, row_factors = factors_of(table, index, factors, columns)
        column_factor = tl.load(column_factors + column, mask=column < columns, other=0.0)
        whole_rows = whole_of(table, index, rows, SHARDED)
        root = tl.sqrt(tl.load(row_totals + index) / whole_rows.to(tl.float32))
    if PASS == SURPRISE:
        clip = clip_of(norm_totals, index, whole_rows * columns)
        momentum = momentum_of(table, index, ALIGNED)
        before = first_row_of(table, index, SHARDED) * columns
    if PASS != NORMS:
        row_sums = parts + field(table, index, ROW_SUMS) + tile % across * rows
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    first_row = tile // across * STRIP
    for start in range(first_row, min(first_row + STRIP, rows), TILE_ROWS):
        row = start + tl.arange(0, TILE_ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        place = row[:, None] * columns + column[None, :]
        x = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        if PASS != SQUARES:
            row_factor = tl.load(row_factors + row, mask=row < rows, other=0.0) * root
            x = x * row_factor[:, None] * column_factor[None, :]
        if PASS == SURPRISE:
            # A tile is narrower than a block, so that one row of a tile lies in one block or in two.
            entry = before + tl.minimum(row, rows - 1)[:, None] * columns
            first, last = (entry + first_column) // BLOCK_ENTRIES, (entry + last_column) // BLOCK_ENTRIES
            border = last * BLOCK_ENTRIES - before
            old = load_momentum(momentum, place, inside, first, last, border, values, MAP)
            update = x * clip
            # Outside the matrix `old` is the minimum of a block and not 0.
            x = tl.where(inside, update - (old + (update - old) * weight), 0.0)
        square = x * x
        total += square
        if PASS != NORMS:
            tl.store(row_sums + row, tl.sum(square, axis=1), mask=row < rows)
    # Sums by row were stored at each step; sums by column are complete only after the strip.
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
    """Move one chunk of a row or column statistic (fields ROW, COLUMN) towards the means of what the tiles summed.

    The inverse roots of the statistic go to `factors`. The sum of a chunk of rows goes to `row_sums`. `weight` is
    1 - beta. Of shards it is given chunks of rows alone, and `shards_triton_kernel` moves the columns.
    """
    index = tl.load(owners + tl.program_id(0))
    if field(table, index, SKIPPED) != 0:
        return
    rows, columns = field(table, index, ROWS).to(tl.int32), field(table, index, COLUMNS).to(tl.int32)
    chunk = tl.program_id(0) - field(table, index, FIRST_CHUNK).to(tl.int32)
    row_chunks = tl.cdiv(rows, CHUNK)
    column_factors, row_factors = factors_of(table, index, factors, columns)
    if chunk < row_chunks:
        statistic, factor = pointer(table, index, ROW, tl.float32, False), row_factors
        part, length, other = parts + field(table, index, ROW_SUMS), rows, columns
        count, start = tl.cdiv(columns, TILE_COLUMNS), chunk * CHUNK
    else:
        statistic, factor = pointer(table, index, COLUMN, tl.float32, False), column_factors
        part, length, other = parts + field(table, index, COLUMN_SUMS), columns, rows
        count, start = tl.cdiv(rows, STRIP), (chunk - row_chunks) * CHUNK
    entry = start + tl.arange(0, CHUNK)
    inside = entry < length
    total = tl.zeros([CHUNK], tl.float32)
    for piece in range(0, count):
        total += tl.load(part + piece * length + entry, mask=inside, other=0.0)
    old = tl.load(statistic + entry, mask=inside, other=1.0)  # 1 beyond the end, whose inverse root is finite
    new = old + (total / other.to(tl.float32) + floor - old) * weight
    tl.store(statistic + entry, new, mask=inside)
    tl.store(factor + entry, tl.rsqrt(new), mask=inside)
    # Chunks of columns add nothing: the estimate is divided by the mean over rows alone.
    by_rows = tl.where(inside & (chunk < row_chunks), new, 0.0)
    tl.store(row_sums + tl.program_id(0), tl.sum(by_rows, axis=0))


@triton.jit
def totals_kernel(values, starts, totals, CHUNK: tl.constexpr):
    """Add up `values[starts[i] : starts[i + 1]]` into `totals[i]`, where i is `program_id(0)`."""
    start, end = tl.load(starts + tl.program_id(0)), tl.load(starts + tl.program_id(0) + 1)
    total = tl.zeros([CHUNK], tl.float32)
    for piece in range(start, end, CHUNK):
        entry = piece + tl.arange(0, CHUNK)
        total += tl.load(values + entry, mask=entry < end, other=0.0)
    tl.store(totals + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def mixed(x):
    """The hash of `rounding._mixed`, here on unsigned integers."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def key_part(table, index, FIELD: tl.constexpr):
    """One half of a parameter's key: 32 bits."""
    return field(table, index, FIELD).to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def to_bfloat16(x, table, index, place, STOCHASTIC: tl.constexpr):
    """float32 rounded to bfloat16: stochastically as by `rounding.to_bfloat16`, or to nearest, halves to even."""
    bits = x.to(tl.uint32, bitcast=True)
    if STOCHASTIC:
        entry = place.to(tl.uint32, bitcast=True)
        added = mixed(mixed(entry ^ key_part(table, index, KEY)) ^ key_part(table, index, KEY_2)) & 0xFFFF
    else:
        # By hand, since the interpreter cuts the lower half off where a GPU rounds to nearest.
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
    before,
    lr,
    decay,
    TYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """p <- p - decay * p - lr * movement at these places, where `decay` is lr * weight_decay.

    `before` is how many entries of the whole parameter lie before those here. Random bits depend on both.
    """
    parameter = pointer(table, index, PARAMETER, TYPE, ALIGNED) + place
    p = tl.load(parameter, mask=inside, other=0.0).to(tl.float32)
    p = p - decay * p
    if TYPE == tl.bfloat16:
        if not STOCHASTIC:
            # The reference rounds twice as well: it decays a bfloat16 before it steps.
            p = to_bfloat16(p, table, index, place, False).to(tl.float32)
        tl.store(parameter, to_bfloat16(p - lr * movement, table, index, place + before, STOCHASTIC), mask=inside)
    else:
        tl.store(parameter, p - lr * movement, mask=inside)


@triton.jit
def block_of(rows, columns, first_row, block, SHARDED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Places, rows and columns of the entries of a block, and which entries and rows lie in the matrix and are here.

    `block` is its number in the whole matrix, of which `first_row` rows lie before those here. If ALIGNED there is one
    row for each run of 16 entries, and else one for each entry.
    """
    # A run of entries lies in one row, so that one row factor serves the run.
    RUN: tl.constexpr = 16 if ALIGNED else 1
    run, entry = tl.arange(0, BLOCK // RUN) * RUN, tl.arange(0, RUN)
    place = (block * BLOCK - first_row * columns + run)[:, None] + entry[None, :]
    inside = place < rows * columns
    # This is run // columns without a division. It is exact below 2^21: adding a half keeps the product off integers.
    shifted = block * BLOCK % columns + run
    below = ((shifted.to(tl.float32) + 0.5) * (1.0 / columns.to(tl.float32))).to(tl.int32)
    row = block * BLOCK // columns - first_row + below
    column = tl.multiple_of(shifted - below * columns, RUN)[:, None] + entry[None, :]
    row_inside = row < rows
    if SHARDED:
        # The first block may begin in the rows of another process.
        inside, row_inside = inside & (place >= 0), row_inside & (row >= 0)
    return place, row, column, inside, row_inside


@triton.jit
def momentum_after(
    table,
    index,
    where,
    block,
    columns,
    whole_rows,
    momentum,
    factors,
    square_totals,
    norm_totals,
    values,
    weight,
    GRADIENT_TYPE: tl.constexpr,
    MAP: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The momentum of a block after this step.

    `where` is what `block_of` returned, `momentum` is what `momentum_of` did, and `weight` is 1 - beta1.
    """
    place, row, column, inside, row_inside = where
    column_factors, row_factors = factors_of(table, index, factors, columns)
    square_root = tl.sqrt(tl.load(square_totals + index) / whole_rows.to(tl.float32))
    square_row = tl.load(row_factors + row, mask=row_inside, other=0.0) * square_root
    square_column = tl.load(column_factors + column, mask=inside, other=0.0)
    g = tl.load(pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED) + place, mask=inside, other=0.0).to(tl.float32)
    update = g * square_row[:, None] * square_column * clip_of(norm_totals, index, whole_rows * columns)
    old = load_momentum(momentum, place, inside, block, None, None, values, MAP)
    return old + (update - old) * weight


@triton.jit
def apply_kernel(
    table,
    owners,
    factors,
    next_factors,
    square_totals,
    norm_totals,
    instability_totals,
    lower,
    upper,
    values,
    thresholds,
    weight,
    lr,
    decay,
    PARAMETER_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    MAP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    SHARDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Move one block of a matrix and of its momentum. `weight` is 1 - beta1.

    If SHARDED, `lower` and `upper` have the bounds of all blocks, as `shards_triton_kernel.bounds_kernel` says. The
    scales and minima that follow from them are left to the caller.
    """
    index = tl.load(owners + tl.program_id(0))
    if field(table, index, SKIPPED) != 0:
        return
    rows, columns = field(table, index, ROWS).to(tl.int32), width_of(table, index, ALIGNED)
    whole_rows = whole_of(table, index, rows, SHARDED)
    first_row = first_row_of(table, index, SHARDED)
    block = tl.program_id(0) - field(table, index, FIRST_BLOCK).to(tl.int32)
    where = block_of(rows, columns, first_row, block, SHARDED, ALIGNED, BLOCK)
    place, row, column, inside, row_inside = where
    packed, codes, scales, minima, floats = momentum_of(table, index, ALIGNED)
    known = (block, columns, whole_rows, (packed, codes, scales, minima, floats))
    scratches = (factors, square_totals, norm_totals, values, weight)
    momentum = momentum_after(table, index, where, *known, *scratches, GRADIENT_TYPE, MAP, ALIGNED)
    root = tl.sqrt(tl.load(instability_totals + index) / whole_rows.to(tl.float32))
    column_factors, row_factors = factors_of(table, index, next_factors, columns)
    row_factor = tl.load(row_factors + row, mask=row_inside, other=0.0) * root
    column_factor = tl.load(column_factors + column, mask=inside, other=0.0)
    movement = momentum * row_factor[:, None] * column_factor
    before = first_row * columns
    descend(table, index, place, inside, movement, before, lr, decay, PARAMETER_TYPE, STOCHASTIC, ALIGNED)
    # The parameter has moved by the exact momentum; only what is kept for the next step is coded.
    if packed:
        if SHARDED:
            bound = field(table, index, BOUNDS) + block
            if MAP == "dynamic":
                code = codes_dynamic(momentum, tl.load(upper + bound), thresholds)
            else:
                code, _ = codes_linear(momentum, -tl.load(lower + bound), tl.load(upper + bound), LEVELS)
        elif MAP == "dynamic":
            code, scale = encode_dynamic(momentum, inside, thresholds)
            tl.store(scales + block, scale)
        else:
            code, scale, minimum = encode_linear(momentum, inside, LEVELS)
            tl.store(minima + block, minimum)
            tl.store(scales + block, scale)
        tl.store(codes + place, code, mask=inside)
    else:
        tl.store(floats + place, momentum, mask=inside)


@triton.jit
def others_kernel(
    table,
    owners,
    norms,
    norm_totals,
    weight,
    square_weight,
    floor,
    square_inverse,
    momentum_inverse,
    lr,
    decay,
    PARAMETER_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    APPLY: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    SHARDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of a parameter that is no matrix: its mean of squares and its update's norm or, if APPLY, its step.

    `square_inverse` and `momentum_inverse` are 1 / (1 - beta^n), which corrects the means; 1 leaves them as they are.
    """
    index = tl.load(owners + tl.program_id(0))
    if field(table, index, SKIPPED) != 0:
        return
    entries = field(table, index, ROWS).to(tl.int32)
    if ALIGNED:
        entries = tl.multiple_of(entries, 16)
    place = (tl.program_id(0) - field(table, index, FIRST_BLOCK).to(tl.int32)) * BLOCK + tl.arange(0, BLOCK)
    inside = place < entries
    g = tl.load(pointer(table, index, GRADIENT, GRADIENT_TYPE, ALIGNED) + place, mask=inside, other=0.0).to(tl.float32)
    squares = pointer(table, index, SQUARE_ROW, tl.float32, ALIGNED) + place
    square = tl.load(squares, mask=inside, other=1.0)  # 1 beyond the end, whose inverse root is finite
    if APPLY:
        momenta = pointer(table, index, MOMENTUM, tl.float32, ALIGNED) + place
        old = tl.load(momenta, mask=inside, other=0.0)
        whole = whole_of(table, index, entries, SHARDED)
        update = g * tl.rsqrt(square * square_inverse) * clip_of(norm_totals, index, whole)
        momentum = old + (update - old) * weight
        tl.store(momenta, momentum, mask=inside)
        before, movement = first_row_of(table, index, SHARDED), momentum * momentum_inverse
        descend(table, index, place, inside, movement, before, lr, decay, PARAMETER_TYPE, STOCHASTIC, ALIGNED)
    else:
        square = square + (g * g + floor - square) * square_weight
        tl.store(squares, square, mask=inside)
        update = g * tl.rsqrt(square * square_inverse)
        tl.store(norms + tl.program_id(0), tl.sum(update * update, axis=0))
