"""The one Triton kernel of all forms: a tile of rows and steps, an associative scan over its time, a carry from tile to tile.

A row is one sequence. Which elements a program takes, and how, is :mod:`a2c_compiled.kernels.triton.tuning`'s; what a form adds to the
scan is :mod:`a2c_compiled.kernels.triton.forms`'s.
"""

# Compile-time arguments are in capitals, as is Triton's custom; device code has no types that mypy could check.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# How a coefficient arrives: as a kernel argument, as one number on the device, as a tensor with an entry for each step.
NUMBER, SCALAR, PER_STEP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# What a launch computes: the whole recurrence; of each split of time what it makes of what enters it; the recurrence, given those.
WHOLE, REDUCE, RESUME = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _enter(a, x, y):
    """``x + a y``, where a zero ``a`` cuts; and of a zero ``y`` nothing comes, though ``a``, a product, may have overflowed."""
    return x + tl.where((a == 0) | (y == 0), 0.0, a * y)


@triton.jit
def _compose(a, x, a_t, x_t):
    """``y -> x + a y``, then ``y -> x_t + a_t y``."""
    return tl.where(a_t == 0, 0.0, a_t * a), _enter(a_t, x_t, x)


@triton.jit
def _compose_both(a, x, b, z, a_t, x_t, b_t, z_t):
    """As _compose, and (b, z) is all of (a, x) but its latest step: an inclusive and an exclusive scan in one."""
    return (
        tl.where(a_t == 0, 0.0, a_t * a),
        _enter(a_t, x_t, x),
        tl.where(b_t == 0, 0.0, b_t * a),
        _enter(b_t, z_t, x),
    )


@triton.jit
def _scan_both(a, x, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    one, zero = tl.full(a.shape, 1, a.dtype), tl.full(a.shape, 0, a.dtype)
    return tl.associative_scan((a, x, one, zero), AXIS, _compose_both, reverse=BACKWARDS)


@triton.jit
def _add_both(a, x, b, z):
    return a + b, x + z


@triton.jit
def _latest(a, x, index, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    """The entries of ``a`` and ``x`` that a scan along the axis reaches last; the axis stays, of size 1."""
    edge: tl.constexpr = 0 if BACKWARDS else x.shape[AXIS] - 1
    chosen = index == edge
    return tl.reduce((tl.where(chosen, a, 0.0), tl.where(chosen, x, 0.0)), AXIS, _add_both, keep_dims=True)


@triton.jit
def _offset(stride, place, LAYOUT: tl.constexpr):
    """Where an operand has the elements at ``place``: batch, time and row."""
    batch, time, row = place
    offset = batch.to(tl.int64) * stride[0] + time.to(tl.int64) * stride[1] + row.to(tl.int64) * stride[2]
    # The distribution over threads follows from these. What they say of the contiguous axis is true: accesses are as wide as the
    # tuning table says, for flags as for numbers, which Triton would distribute apart. What they say of chunks (the 2) serves
    # only to rank them: warps go to chunks before steps, which a thread then scans in its own registers.
    vector: tl.constexpr = LAYOUT[1]
    if vector > 0:
        if LAYOUT[2]:
            offset = tl.max_contiguous(tl.multiple_of(offset, [vector, 1, 1]), [16, 1, 2])
        else:
            offset = tl.max_contiguous(tl.multiple_of(offset, [1, vector, 1]), [1, 16, 2])
    return offset


@triton.jit
def _load(pointers, strides, place, mask, FIRST: tl.constexpr, SHIFT: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr):
    loaded = ()
    for i in tl.static_range(len(pointers)):
        stride = strides[0 if LAYOUT[0] else FIRST + i]
        offset = _offset(stride, place, LAYOUT) + SHIFT * stride[1]
        loaded = loaded + (tl.load(pointers[i] + offset, mask=mask, other=0).to(TYPE),)  # type: ignore[assignment]
    return loaded


@triton.jit
def _load_step(
    tensors, strides, place, mask, SHIFT: tl.constexpr, MODES: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr
):
    """Coefficients, values and flags at ``place``, or ``SHIFT`` steps later; zeros outside of the mask."""
    coefficients, values, flags = tensors
    first_flag: tl.constexpr = 1 + len(values)
    first_coefficient: tl.constexpr = first_flag + len(flags)
    loaded = ()
    for i in tl.static_range(len(coefficients)):
        if MODES[i] == NUMBER:
            loaded = loaded + (tl.cast(coefficients[i], TYPE),)  # type: ignore[assignment]
        elif MODES[i] == SCALAR:
            loaded = loaded + (tl.load(coefficients[i]),)  # type: ignore[assignment]
        else:
            one = (coefficients[i],)
            loaded = loaded + _load(one, strides, place, mask, first_coefficient + i, SHIFT, LAYOUT, TYPE)
    return (
        loaded,
        _load(values, strides, place, mask, 1, SHIFT, LAYOUT, TYPE),
        _load(flags, strides, place, mask, first_flag, SHIFT, LAYOUT, tl.int1),
    )


@triton.jit
def _resume(aggregates, aggregate, stride, mask, split, splits, REVERSE: tl.constexpr, SPLITS: tl.constexpr):
    """What enters ``split``: the aggregates of the splits before it, composed in the order of the scan."""
    order = tl.arange(0, SPLITS)[None, :, None]
    index = SPLITS - 1 - order if REVERSE else order
    # There is one fewer than splits: in reverse time they are those of the second split, the third and so on.
    comes_before = (index >= split) & (index < splits - 1) if REVERSE else index < split
    pointer = aggregate + index * stride
    a = tl.load(aggregates[0] + pointer, mask=mask & comes_before, other=1)
    x = tl.load(aggregates[1] + pointer, mask=mask & comes_before, other=0)
    a, x = tl.associative_scan((a, x), 1, _compose)
    _, carry = _latest(a, x, order, 1, False)
    return carry


@triton.jit
def scan_kernel(
    coefficients,
    values,
    flags,
    outputs,
    aggregates,
    strides,
    rows,
    length,
    tiles,
    splits,
    DECAY: tl.constexpr,
    SOURCE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NEEDS_NEXT: tl.constexpr,
    REVERSE: tl.constexpr,
    PASS: tl.constexpr,
    MODES: tl.constexpr,
    LAYOUT: tl.constexpr,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One block of rows through one split of time: ``tiles`` tiles of CHUNKS chunks of STEPS steps.

    ``strides``: of the outputs, then, unless all are the same, of values, flags and coefficients; each by batch, time and row.
    LAYOUT: whether they are the same; how many contiguous elements align (0: nothing is known); whether it is rows that are contiguous.
    Tiles are [ROWS, STEPS, CHUNKS].
    """
    # Always in the order of the scan but for steps that are contiguous: those are scanned backwards rather than loaded so.
    BACKWARDS: tl.constexpr = REVERSE and not LAYOUT[2]
    blocks = tl.cdiv(rows, ROWS)
    batch = tl.program_id(0) // blocks
    row = ((tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS))[:, None, None]
    step = tl.arange(0, STEPS)[None, :, None]
    chunk = tl.arange(0, CHUNKS)[None, None, :]
    time_in_tile = (CHUNKS - 1 - chunk if REVERSE else chunk) * STEPS
    time_in_tile += STEPS - 1 - step if REVERSE and not BACKWARDS else step
    # The host has seen to it that this changes nothing; said so that a mask holds for a whole vector.
    row_end = rows
    time_end = length
    if LAYOUT[1] > 1:
        if LAYOUT[2]:
            row_end = rows // LAYOUT[1] * LAYOUT[1]
        else:
            time_end = length // LAYOUT[1] * LAYOUT[1]

    split = tl.program_id(1)
    if PASS == REDUCE:
        split += 1 if REVERSE else 0  # what the last split in the order of the scan makes of it, nobody asks
    aggregate = batch.to(tl.int64) * rows + row
    aggregate_stride = (tl.num_programs(0) // blocks).to(tl.int64) * rows
    carry = tl.full([ROWS, 1, 1], 0, TYPE)
    decay_so_far = tl.full([ROWS, 1, 1], 1, TYPE)
    if PASS == RESUME:
        carry = _resume(aggregates, aggregate, aggregate_stride, row < rows, split, splits, REVERSE, SPLITS)

    for i in range(tiles):
        tile = split * tiles + (tiles - 1 - i if REVERSE else i)
        time = tile * (CHUNKS * STEPS) + time_in_tile
        last = time == length - 1
        place = (batch, time, row)
        tensors = (coefficients, values, flags)
        inside = (time < time_end) & (row < row_end)
        here = _load_step(tensors, strides, place, inside, 0, MODES, LAYOUT, TYPE)
        before = _load_step(tensors, strides, place, inside & (time > 0), -1, MODES, LAYOUT, TYPE)
        after = _load_step(tensors, strides, place, inside & (time < length - 1), 1, MODES, LAYOUT, TYPE)

        x = SOURCE(here, before, after, last)
        if REVERSE:
            # Nothing comes after the last step, or before the first, whatever the decay there.
            a = tl.where(last, 0.0, DECAY(here[0], here[1], here[2]))
        else:
            a = tl.where(time == 0, 0.0, DECAY(before[0], before[1], before[2]))
        a, x = tl.broadcast(a, x)
        if NEEDS_NEXT:
            a, x, a_next, x_next = _scan_both(a, x, 1, BACKWARDS)
        else:
            a, x = tl.associative_scan((a, x), 1, _compose, reverse=BACKWARDS)

        # A chunk is entered by what those before it made of the carry.
        tile_a, tile_x = _latest(a, x, step, 1, BACKWARDS)
        entry = carry
        if CHUNKS > 1:
            chunk_a, chunk_x, entry_a, entry_x = _scan_both(tile_a, tile_x, 2, False)
            entry = _enter(entry_a, entry_x, carry)
            tile_a, tile_x = _latest(chunk_a, chunk_x, chunk, 2, False)
        carry = _enter(tile_a, tile_x, carry)

        if PASS == REDUCE:
            decay_so_far = tl.where(tile_a == 0, 0.0, tile_a * decay_so_far)
        else:
            y = _enter(a, x, entry)
            y_next = y
            if NEEDS_NEXT:
                y_next = _enter(a_next, x_next, entry)
            results = OUTPUTS(here, before, after, last, y, y_next)
            offset = _offset(strides[0], place, LAYOUT)
            for k in tl.static_range(len(outputs)):
                tl.store(outputs[k] + offset, results[k], mask=inside)

    if PASS == REDUCE:
        pointer = aggregate + tl.program_id(1) * aggregate_stride
        tl.store(aggregates[0] + pointer, decay_so_far, mask=row < rows)
        tl.store(aggregates[1] + pointer, carry, mask=row < rows)
