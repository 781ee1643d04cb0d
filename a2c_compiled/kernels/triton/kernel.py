"""The scan kernel, shared by all forms (recurrences with their inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`).

A program handles a block of rows (sequences). The program loads a tile of rows and steps, scans the tile along time with an associative
scan, and carries the last result into the next tile. :mod:`a2c_compiled.kernels.triton.tuning` chooses the tile sizes, and
:mod:`a2c_compiled.kernels.triton.forms` defines the decay, ``x`` and the outputs of each form.

One step of the scan is the map ``y -> x + a * y`` from the value that enters the step to the value that leaves it. Here ``a`` is
``decay[t]`` in a reverse scan and ``decay[t-1]`` in a transposed one. Maps compose, and the composition is associative::

    (a1, x1) then (a2, x2)  =  (a2 * a1, x2 + a2 * x1)

A zero ``a`` cuts the scan: whatever enters the step, NaN and infinity included, the value that leaves it is ``x``. Composed maps break this
rule: 0 * NaN is NaN, and a product of decays may underflow to 0 or overflow to infinity. But whenever NaN, infinity or an overflow meets a
composed map, the result is NaN or infinite. So the kernel adds ``0 * y`` over all results of a program. If the sum is NaN, the program
scans its rows again, one step after the other, which is exact and slow.
"""

# Compile-time arguments are in capitals, as in Triton's own code. Device code has no types that mypy could check.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# How a coefficient is passed. NUMBER: as a kernel argument. SCALAR: as a pointer to one element. PER_STEP: as a pointer to one element
# per step.
NUMBER, SCALAR, PER_STEP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# Launch modes. A time split is a part of time that different programs scan; its aggregate is the pair that REDUCE computes.
# WHOLE: one program per block of rows scans all steps and writes the outputs. Time is not split.
# REDUCE: one program per block of rows and time split. It computes the pair (decay, offset) that maps the value entering the split to the
#   value leaving it, leaving = offset + decay * entering, and writes it to the aggregates. No program runs for the split that the
#   scan reaches last, because no split reads its aggregate.
# RESUME: one program per block of rows and time split. It computes the value entering its split from the aggregates of the earlier
#   splits, then scans its split and writes the outputs.
WHOLE, REDUCE, RESUME = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# The entries of the argument LAYOUT.
# SHARED: whether all operands have the same strides.
# VECTOR: the number of adjacent elements of an aligned group, or 0 if the elements are not contiguous in every operand.
# ROWS_CONTIGUOUS: whether rows (instead of time) are the contiguous axis.
# MASKED: whether the last flag is a mask.
# SMALL: whether rows are contiguous and every offset fits in 32 bits. If time is contiguous, 64-bit offsets take no more instructions.
# DIVIDED: whether the tiles divide the data, so that no element of a tile is outside of it.
# ONE_BATCH: whether there is one batch.
SHARED, VECTOR, ROWS_CONTIGUOUS, MASKED, SMALL, DIVIDED, ONE_BATCH = (tl.constexpr(i) for i in range(7))


@triton.jit
def _compose(a, x, a_t, x_t):
    """Returns the map ``(a, x)`` followed by the map ``(a_t, x_t)``."""
    return a_t * a, x_t + a_t * x


@triton.jit
def _compose_both(a, x, b, z, a_t, x_t, b_t, z_t):
    """Composes as ``_compose`` does, and also the maps ``(b, z)``, which leave out the latest step of ``(a, x)``.

    One scan then computes the inclusive result (the value leaving a step) and the exclusive result (the value entering the step).
    """
    return a_t * a, x_t + a_t * x, b_t * a, z_t + b_t * x


@triton.jit
def _scan_both(a, x, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    """Scans along AXIS and returns the inclusive maps (a, x) and the exclusive maps (b, z)."""
    ones, zeros = tl.full(a.shape, 1, a.dtype), tl.full(a.shape, 0, a.dtype)
    return tl.associative_scan((a, x, ones, zeros), AXIS, _compose_both, reverse=BACKWARDS)


@triton.jit
def _add_both(a, x, b, z):
    """Returns the sum of the pairs ``(a, x)`` and ``(b, z)``."""
    return a + b, x + z


@triton.jit
def _latest(a, x, index, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    """Returns the entries of ``a`` and ``x`` that a scan along AXIS reaches last. The results keep AXIS, with size 1."""
    edge: tl.constexpr = 0 if BACKWARDS else x.shape[AXIS] - 1
    chosen = index == edge
    return tl.reduce((tl.where(chosen, a, 0.0), tl.where(chosen, x, 0.0)), AXIS, _add_both, keep_dims=True)


@triton.jit
def _offset(stride, place, LAYOUT: tl.constexpr):
    """Returns the offsets of the elements at ``place``: (batch, time, row, number of steps)."""
    batch, time, row = place[0], place[1], place[2]
    if not LAYOUT[SMALL]:
        time, row = time.to(tl.int64), row.to(tl.int64)
    offset = time * stride[1] + row * stride[2]
    if not LAYOUT[ONE_BATCH]:
        offset += (batch if LAYOUT[SMALL] else batch.to(tl.int64)) * stride[0]
    # Triton distributes a tile over threads by these hints. For the contiguous axis the hints are true. With the hints, flags have the
    # distribution of values, so accesses are as wide as the tuning table says; otherwise Triton would distribute flags differently. The
    # hint for chunks (the 2) only ranks the axes: warps spread over chunks before steps, so that one thread scans its steps in registers.
    vector: tl.constexpr = LAYOUT[VECTOR]
    if vector > 0:
        if LAYOUT[ROWS_CONTIGUOUS]:
            offset = tl.max_contiguous(tl.multiple_of(offset, [vector, 1, 1]), [16, 1, 2])
        else:
            offset = tl.max_contiguous(tl.multiple_of(offset, [1, vector, 1]), [1, 16, 2])
    return offset


@triton.jit
def _load(pointers, strides, place, mask, FIRST: tl.constexpr, SHIFT: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr):
    """Loads the elements at ``place``, ``SHIFT`` steps later, from each tensor; 0 outside the mask.

    ``strides[FIRST]`` belongs to the first tensor.
    """
    loaded = ()
    for i in tl.static_range(len(pointers)):
        stride = strides[0 if LAYOUT[SHARED] else FIRST + i]
        offset = _offset(stride, place, LAYOUT) + SHIFT * stride[1]
        loaded = loaded + (tl.load(pointers[i] + offset, mask=mask, other=0).to(TYPE),)  # type: ignore[assignment]
    return loaded


@triton.jit
def _load_step(
    tensors, strides, place, mask, SHIFT: tl.constexpr, MODES: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr
):
    """Loads coefficients, values and flags at ``place``, ``SHIFT`` steps later; tensors with an entry per step are 0 outside ``mask``.

    With a form that has a mask, its last flag, the steps that this mask excludes count as :func:`scan_forms.masked` says. The flags keep
    their coefficients out.
    """
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
            pointers = (coefficients[i],)
            loaded = loaded + _load(pointers, strides, place, mask, first_coefficient + i, SHIFT, LAYOUT, TYPE)
    loaded_values = _load(values, strides, place, mask, 1, SHIFT, LAYOUT, TYPE)
    loaded_flags = _load(flags, strides, place, mask, first_flag, SHIFT, LAYOUT, tl.int1)
    if LAYOUT[MASKED]:
        last: tl.constexpr = len(flags) - 1
        included = loaded_flags[last]
        has_next = mask & (place[1] + (SHIFT + 1) < place[3])
        next_included = _load((flags[last],), strides, place, has_next, first_flag + last, SHIFT + 1, LAYOUT, tl.int1)
        loaded_values = _zero_unless(included, loaded_values)
        done = loaded_flags[0] | (included == 0) | (has_next & (next_included[0] == 0))
        loaded_flags = (done, included) if len(flags) == 2 else (done, loaded_flags[1] | (included == 0), included)
    return loaded, loaded_values, loaded_flags


@triton.jit
def _load_steps(tensors, strides, place, inside, MODES: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr):
    """Loads the steps ``t``, ``t-1`` and ``t+1`` for ``place``. A step that does not exist is 0, as elements that are not ``inside``."""
    time, length = place[1], place[3]
    here = _load_step(tensors, strides, place, inside, 0, MODES, LAYOUT, TYPE)
    before = _load_step(tensors, strides, place, inside & (time > 0), -1, MODES, LAYOUT, TYPE)
    after = _load_step(tensors, strides, place, inside & (time < length - 1), 1, MODES, LAYOUT, TYPE)
    return here, before, after


@triton.jit
def _zero_unless(condition, tensors):
    """Returns the tensors with 0 where the condition does not hold."""
    selected = ()
    for i in tl.static_range(len(tensors)):
        selected = selected + (tl.where(condition, tensors[i], 0.0),)
    return selected


@triton.jit
def scan_step_by_step(
    tensors,
    outputs,
    strides,
    batch,
    row,
    rows,
    length,
    begin,
    end,
    DECAY: tl.constexpr,
    SOURCE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    REVERSE: tl.constexpr,
    MODES: tl.constexpr,
    LAYOUT: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Scans the rows from the first step of the scan on, one step after the other. Stores the outputs of the steps [begin, end)."""
    y = tl.zeros(row.shape, TYPE)
    first = length - 1 if REVERSE else 0
    for i in range(length - begin if REVERSE else end):
        t = first - i if REVERSE else i
        time = tl.zeros(row.shape, tl.int32) + t
        place = (batch, time, row, length)
        inside = row < rows
        here, before, after = _load_steps(tensors, strides, place, inside, MODES, LAYOUT, TYPE)
        last = time == length - 1
        x = SOURCE(here, before, after, last)
        decaying = here if REVERSE else before
        a = DECAY(decaying[0], decaying[1], decaying[2])
        y_next = y
        y = tl.where((a == 0) | (time == first), x, x + a * y_next)
        results = OUTPUTS(here, before, after, last, y, y_next)
        if LAYOUT[MASKED]:
            results = _zero_unless(here[2][len(here[2]) - 1], results)
        offset = _offset(strides[0], place, LAYOUT)
        for k in tl.static_range(len(outputs)):
            tl.store(outputs[k] + offset, results[k], mask=inside & (time >= begin) & (time < end))


@triton.jit
def _resume(aggregates, aggregate, stride, mask, split, splits, REVERSE: tl.constexpr, SPLITS: tl.constexpr):
    """Returns the value entering ``split``: the composed aggregates of the splits that the scan reaches before ``split``, applied to 0."""
    order = tl.arange(0, SPLITS)[None, :, None]
    index = SPLITS - 1 - order if REVERSE else order
    # There are splits - 1 aggregates. In a reverse scan, aggregate i belongs to split i + 1, because split 0 is reached last.
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
    LAUNCH_MODE: tl.constexpr,
    MODES: tl.constexpr,
    LAYOUT: tl.constexpr,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPLITS: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
):
    """Scans one block of ROWS rows over one time split, which has ``tiles`` tiles of CHUNKS chunks of STEPS steps.

    Program (i, j): i is the batch and the block of rows, j the time split. Tiles have the shape [ROWS, STEPS, CHUNKS].

    Args:
        coefficients, values, flags, outputs: tuples of pointers in the order of the form; coefficients may be numbers (see MODES).
        aggregates: pointers to the decays and the offsets of the splits, [splits - 1, batches * rows] each; empty in the mode WHOLE.
        strides: one (batch, time, row) triple of strides for the outputs, then, unless all are equal, one for each value, flag and
            coefficient.
        rows: number of rows of a batch.
        length: number of steps, T.
        tiles: number of tiles of a time split.
        splits: number of time splits.
        DECAY, SOURCE, OUTPUTS, NEEDS_NEXT: the fields of the form's DeviceForm.
        REVERSE: whether the scan runs in reverse time.
        LAUNCH_MODE: WHOLE, REDUCE or RESUME.
        MODES: how each coefficient is passed, NUMBER, SCALAR or PER_STEP.
        LAYOUT: a tuple of the properties SHARED to ONE_BATCH.
        TYPE: the dtype of the computation.
        SPLITS: ``splits`` rounded up to a power of two.
        ONE_CHUNK: whether one chunk has all steps. No value other than 0 then enters a chunk.
    """
    # A reverse scan loads its steps in descending order, so that the scan runs forward over the tile. But if time is contiguous, the kernel
    # loads the steps in ascending order, for wide accesses, and the scan runs backwards over the tile.
    BACKWARDS: tl.constexpr = REVERSE and not LAYOUT[ROWS_CONTIGUOUS]
    blocks = tl.num_programs(0) if LAYOUT[ONE_BATCH] else tl.cdiv(rows, ROWS)
    batch = 0 if LAYOUT[ONE_BATCH] else tl.program_id(0) // blocks
    block = tl.program_id(0) if LAYOUT[ONE_BATCH] else tl.program_id(0) % blocks
    row = (block * ROWS + tl.arange(0, ROWS))[:, None, None]
    step = tl.arange(0, STEPS)[None, :, None]
    chunk = tl.arange(0, CHUNKS)[None, None, :]
    time_in_tile = (CHUNKS - 1 - chunk if REVERSE else chunk) * STEPS
    time_in_tile += STEPS - 1 - step if REVERSE and not BACKWARDS else step
    # The host chose a vector size that divides rows or length, so rounding down changes nothing. From the rounding, Triton infers that a
    # mask is constant over a vector.
    row_end = rows
    time_end = length
    if LAYOUT[VECTOR] > 1:
        if LAYOUT[ROWS_CONTIGUOUS]:
            row_end = rows // LAYOUT[VECTOR] * LAYOUT[VECTOR]
        else:
            time_end = length // LAYOUT[VECTOR] * LAYOUT[VECTOR]

    split = tl.program_id(1)
    if LAUNCH_MODE == REDUCE:
        split += 1 if REVERSE else 0  # no split reads the aggregate of the split that the scan reaches last
    aggregate = row if LAYOUT[ONE_BATCH] else batch.to(tl.int64) * rows + row  # type: ignore[union-attr]
    aggregate_stride = (1 if LAYOUT[ONE_BATCH] else (tl.num_programs(0) // blocks).to(tl.int64)) * rows
    carry = tl.full([ROWS, 1, 1], 0, TYPE)
    decay_so_far = tl.full([ROWS, 1, 1], 1, TYPE)
    # 0 * y, added over the results: 0, or NaN if a result is NaN or infinite. Adding it first over the steps of a thread saves registers:
    # a thread has all steps of a chunk if rows are contiguous, otherwise groups of adjacent steps.
    adjacent: tl.constexpr = STEPS if LAYOUT[ROWS_CONTIGUOUS] else (LAYOUT[VECTOR] if LAYOUT[VECTOR] > 1 else 1)
    zero_if_finite = tl.full([ROWS, STEPS // adjacent, CHUNKS], 0, TYPE)
    if LAUNCH_MODE == RESUME:
        carry = _resume(aggregates, aggregate, aggregate_stride, row < rows, split, splits, REVERSE, SPLITS)

    for i in range(tiles):
        tile = split * tiles + (tiles - 1 - i if REVERSE else i)
        time = tile * (CHUNKS * STEPS) + time_in_tile
        last = time == length - 1
        place = (batch, time, row, length)
        tensors = (coefficients, values, flags)
        inside = tl.full([1, 1, 1], 1, tl.int1) if LAYOUT[DIVIDED] else (time < time_end) & (row < row_end)
        here, before, after = _load_steps(tensors, strides, place, inside, MODES, LAYOUT, TYPE)

        x = SOURCE(here, before, after, last)
        decaying = here if REVERSE else before
        a, x = tl.broadcast(DECAY(decaying[0], decaying[1], decaying[2]), x)
        if NEEDS_NEXT:
            a, x, a_next, x_next = _scan_both(a, x, 1, BACKWARDS)
        else:
            a, x = tl.associative_scan((a, x), 1, _compose, reverse=BACKWARDS)

        # The value entering a chunk: the maps of the earlier chunks, applied to the carry.
        tile_a, tile_x = _latest(a, x, step, 1, BACKWARDS)
        entry = carry
        if CHUNKS > 1:
            chunk_a, chunk_x, entry_a, entry_x = _scan_both(tile_a, tile_x, 2, False)
            entry = entry_x + entry_a * carry
            tile_a, tile_x = _latest(chunk_a, chunk_x, chunk, 2, False)
        carry = tile_x + tile_a * carry

        if LAUNCH_MODE == REDUCE:
            decay_so_far *= tile_a
        else:
            y = x if ONE_CHUNK else x + a * entry
            zero_if_finite += tl.sum(tl.reshape(0.0 * y, [ROWS, STEPS // adjacent, adjacent, CHUNKS]), 2)
            y_next = y
            if NEEDS_NEXT:
                y_next = x_next if ONE_CHUNK else x_next + a_next * entry
            results = OUTPUTS(here, before, after, last, y, y_next)
            if LAYOUT[MASKED]:
                results = _zero_unless(here[2][len(here[2]) - 1], results)
            offset = _offset(strides[0], place, LAYOUT)
            for k in tl.static_range(len(outputs)):
                tl.store(outputs[k] + offset, results[k], mask=inside)

    if LAUNCH_MODE == REDUCE:
        pointer = aggregate + tl.program_id(1) * aggregate_stride
        tl.store(aggregates[0] + pointer, decay_so_far, mask=row < rows)
        tl.store(aggregates[1] + pointer, carry, mask=row < rows)
    elif tl.sum(zero_if_finite) != 0:  # NaN
        begin = split * tiles * (CHUNKS * STEPS)
        end = tl.minimum(begin + tiles * (CHUNKS * STEPS), length)
        scan_step_by_step(
            (coefficients, values, flags),
            outputs,
            strides,
            batch,
            row,
            rows,
            length,
            begin,
            end,
            DECAY,
            SOURCE,
            OUTPUTS,
            REVERSE,
            MODES,
            (LAYOUT[SHARED], 0, LAYOUT[ROWS_CONTIGUOUS], LAYOUT[MASKED], LAYOUT[SMALL], False, LAYOUT[ONE_BATCH]),
            TYPE,
        )
