"""The scan kernel, shared by all forms (recurrences with their inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`).

A program handles a block of rows (sequences). The program loads a tile of rows and steps, scans the tile along time, and carries the last
result into the next tile. :mod:`a2c_compiled.kernels.triton.tuning` chooses the tile sizes, and
:mod:`a2c_compiled.kernels.triton.forms` defines the decay, ``x`` and the outputs of each form.

One step of the scan is the map ``y -> x + a * y`` from the value that enters the step to the value that leaves it. Here ``a`` is
``decay[t]`` in a reverse scan and ``decay[t-1]`` in a transposed one. Maps compose, and the composition is associative::

    (a1, x1) then (a2, x2)  =  (a2 * a1, x2 + a2 * x1)

A zero ``a`` cuts the scan: whatever enters the step, NaN and infinity included, the value that leaves it is ``x``. Composed maps break this
rule, because 0 * NaN is NaN. If NaN, infinity or an overflow enters a composed map, its result is not finite. Every later result of the
thread is then not finite either, because it is ``x + a * y``. The kernel therefore adds ``0 * y`` over the last results of each thread. If
a sum is NaN, the program scans its rows again, one step after the other, which is exact and slow.

A product of decays that underflows to 0 drops a finite contribution. The kernel does not notice this.
"""

# Compile-time arguments are in capitals, as in Triton's own code. Device code has no types that mypy could check.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# How a coefficient is passed. NUMBER: as a kernel argument. SCALAR: as a pointer to one element. PER_STEP: as a pointer to one element
# per step.
NUMBER, SCALAR, PER_STEP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# Launch modes. A time split is a range of steps; each has a program of its own for every block of rows. Its aggregate is the pair that
# REDUCE computes.
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
# SMALL: whether UNROLLED holds and every offset fits in 32 bits. In other layouts, 64-bit offsets take no more instructions.
# DIVIDED: whether the tiles divide the data, so that no element of a tile is outside of it.
# ONE_BATCH: whether there is one batch.
# UNROLLED: whether a tile is one tensor [ROWS, 1, CHUNKS] per step of a chunk, instead of one tensor [ROWS, STEPS, CHUNKS]. A thread then
#   has all steps of its chunks.
SHARED, VECTOR, ROWS_CONTIGUOUS, MASKED, SMALL, DIVIDED, ONE_BATCH, UNROLLED = (tl.constexpr(i) for i in range(8))


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
def _latest_map(a, x, index, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    """Returns the entries of ``a`` and ``x`` that a scan along AXIS reaches last. The results keep AXIS, with size 1."""
    edge: tl.constexpr = 0 if BACKWARDS else x.shape[AXIS] - 1
    chosen = index == edge
    return tl.reduce((tl.where(chosen, a, 0.0), tl.where(chosen, x, 0.0)), AXIS, _add_both, keep_dims=True)


@triton.jit
def _latest(x, index, AXIS: tl.constexpr, BACKWARDS: tl.constexpr):
    """Returns the entries of ``x`` that a scan along AXIS reaches last. The result keeps AXIS, with size 1."""
    edge: tl.constexpr = 0 if BACKWARDS else x.shape[AXIS] - 1
    return tl.sum(tl.where(index == edge, x, 0.0), AXIS, keep_dims=True)


@triton.jit
def _offset(stride, place, SHIFT: tl.constexpr, LAYOUT: tl.constexpr):
    """Returns offsets in elements, ``SHIFT`` steps after ``place``, which is (batch, time, row, number of steps of the data)."""
    batch, time, row = place[0], place[1], place[2]
    if not LAYOUT[SMALL]:
        time, row = time.to(tl.int64), row.to(tl.int64)
    if LAYOUT[ROWS_CONTIGUOUS]:
        time += SHIFT
    offset = time * stride[1] + row * stride[2]
    if not LAYOUT[ONE_BATCH]:
        offset += (batch if LAYOUT[SMALL] else batch.to(tl.int64)) * stride[0]
    # From these hints, Triton chooses which thread holds which elements. Along the contiguous axis they are true. They give flags the
    # layout of the values, so accesses are as wide as the tuning table says. The 2 for chunks only orders the axes: warps take chunks
    # before steps, so one thread scans its steps in registers.
    vector: tl.constexpr = LAYOUT[VECTOR]
    if vector > 0:
        if LAYOUT[ROWS_CONTIGUOUS]:
            offset = tl.max_contiguous(tl.multiple_of(offset, [vector, 1, 1]), [16, 1, 2])
        else:
            offset = tl.max_contiguous(tl.multiple_of(offset, [1, vector, 1]), [1, 16, 2])
    return offset if LAYOUT[ROWS_CONTIGUOUS] else offset + SHIFT * stride[1]


@triton.jit
def _load(pointers, strides, place, mask, FIRST: tl.constexpr, SHIFT: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr):
    """Loads the elements at ``place``, ``SHIFT`` steps later, from each tensor; 0 outside the mask.

    ``strides[FIRST]`` belongs to the first tensor.
    """
    loaded = ()
    for i in tl.static_range(len(pointers)):
        stride = strides[0 if LAYOUT[SHARED] else FIRST + i]
        offset = _offset(stride, place, SHIFT, LAYOUT)
        loaded = loaded + (tl.load(pointers[i] + offset, mask=mask, other=0).to(TYPE),)  # type: ignore[assignment]
    return loaded


@triton.jit
def _load_step(
    tensors, strides, place, mask, SHIFT: tl.constexpr, MODES: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr
):
    """Loads coefficients, values and flags at ``place``, ``SHIFT`` steps later; tensors with an entry per step are 0 outside ``mask``.

    If the last flag of the form is a mask of excluded steps, these steps follow :func:`scan_forms.masked`. Their ``done`` flag is True, so
    their coefficients have no effect.
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
def _load_steps(tensors, strides, places, MODES: tl.constexpr, LAYOUT: tl.constexpr, TYPE: tl.constexpr):
    """Loads the steps at ``places``, which follow each other, the step before them and the step after them.

    For a step outside of the data, all operands with an entry per step are 0.
    """
    first, last = places[0], places[len(places) - 1]
    steps = (_load_step(tensors, strides, first, first[1] > 0, -1, MODES, LAYOUT, TYPE),)
    for i in tl.static_range(len(places)):
        exists = tl.full([1, 1, 1], 1, tl.int1)
        steps = steps + (_load_step(tensors, strides, places[i], exists, 0, MODES, LAYOUT, TYPE),)  # type: ignore[assignment]
    return steps + (_load_step(tensors, strides, last, last[1] < last[3] - 1, 1, MODES, LAYOUT, TYPE),)


@triton.constexpr_function
def _slice(index, slices, reverse):
    """Returns the slice of a tile that the scan reaches after ``index`` others. Slices are in the order of time."""
    return slices - 1 - index if reverse else index


@triton.jit
def _step_of_slice(steps, places, SLICE: tl.constexpr, ENDS: tl.constexpr):
    """Returns the operands of a slice at ``t``, ``t-1`` and ``t+1``, and whether ``t`` is the last step.

    ENDS: whether only the last slice of a tile can have the last step.
    """
    last = places[SLICE][1] == places[SLICE][3] - 1
    if ENDS and len(places) - 1 > SLICE:
        last = tl.full([1, 1, 1], 0, tl.int1)
    return steps[SLICE + 1], steps[SLICE], steps[SLICE + 2], last


@triton.jit
def _zero_unless(condition, tensors):
    """Returns the tensors with 0 where the condition does not hold."""
    selected = ()
    for i in tl.static_range(len(tensors)):
        selected = selected + (tl.where(condition, tensors[i], 0.0),)
    return selected


@triton.constexpr_function
def _of_single_steps(layout):
    """Returns LAYOUT for tiles of one step: without vectors, not divided, unrolled.

    A constexpr function, because Triton 3.6 does not treat a tuple literal in a kernel as a constant.
    """
    shared, _, rows_contiguous, masked, small, _, one_batch, _ = layout
    return shared, 0, rows_contiguous, masked, small, False, one_batch, True


@triton.jit
def scan_step_by_step(
    tensors,
    outputs,
    strides,
    batch,
    row,
    row_inside,
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
    """Scans the rows from the first step of the scan on, one step after the other. Stores the outputs of the steps [begin, end).

    ``row_inside``: the mask of the rows whose outputs are stored.
    """
    y = tl.zeros(row.shape, TYPE)
    first = length - 1 if REVERSE else 0
    for i in range(length - begin if REVERSE else end):
        t = first - i if REVERSE else i
        time = tl.zeros(row.shape, tl.int32) + t
        place = (batch, time, row, length)
        before, here, after = _load_steps(tensors, strides, (place,), MODES, LAYOUT, TYPE)
        last = time == length - 1
        x = SOURCE(here, before, after, last)
        decaying = here if REVERSE else before
        a = DECAY(decaying[0], decaying[1], decaying[2])
        y_next = y
        y = tl.where((a == 0) | (time == first), x, x + a * y_next)
        results = OUTPUTS(here, before, after, last, y, y_next)
        if LAYOUT[MASKED]:
            results = _zero_unless(here[2][len(here[2]) - 1], results)
        offset = _offset(strides[0], place, 0, LAYOUT)
        for k in tl.static_range(len(outputs)):
            tl.store(outputs[k] + offset, results[k], mask=row_inside & (time >= begin) & (time < end))


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
    return _latest(x, order, 1, False)


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

    Program (i, j): i is the batch and the block of rows, j the time split.
    A tile is a tuple of SLICES tensors [ROWS, STEPS // SLICES, CHUNKS], with SLICES = STEPS if the LAYOUT is UNROLLED, else 1.

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
        LAYOUT: a tuple of the properties SHARED to UNROLLED.
        TYPE: the dtype of the computation.
        SPLITS: ``splits`` rounded up to a power of two.
        ONE_CHUNK: whether one chunk has all steps. No value other than 0 then enters a chunk.
    """
    # Chunks are in the order of the scan. Steps of a chunk are in the order of time, for wide accesses, so a reverse scan goes backwards.
    SLICES: tl.constexpr = STEPS if LAYOUT[UNROLLED] else 1
    SLICE_STEPS: tl.constexpr = STEPS // SLICES
    ENDS: tl.constexpr = REVERSE or LAYOUT[DIVIDED]
    blocks = tl.num_programs(0) if LAYOUT[ONE_BATCH] else tl.cdiv(rows, ROWS)
    batch = 0 if LAYOUT[ONE_BATCH] else tl.program_id(0) // blocks
    block = tl.program_id(0) if LAYOUT[ONE_BATCH] else tl.program_id(0) % blocks
    row = (block * ROWS + tl.arange(0, ROWS))[:, None, None]
    step = tl.arange(0, SLICE_STEPS)[None, :, None]
    chunk = tl.arange(0, CHUNKS)[None, None, :]
    time_in_tile = (CHUNKS - 1 - chunk if REVERSE else chunk) * STEPS + step
    # If the tiles do not divide the data, the last tile extends past the data. Such elements read the first elements, so loads need no
    # masks. Their results reach no other element and are not stored.
    # The vector size divides rows or length, so rounding down changes nothing. It shows Triton that a mask is constant within a vector.
    ROW_VECTOR: tl.constexpr = LAYOUT[VECTOR] if LAYOUT[ROWS_CONTIGUOUS] and LAYOUT[VECTOR] > 1 else 1
    STEP_VECTOR: tl.constexpr = 1 if LAYOUT[ROWS_CONTIGUOUS] or LAYOUT[VECTOR] <= 1 else LAYOUT[VECTOR]
    row_end, time_end = rows // ROW_VECTOR * ROW_VECTOR, length // STEP_VECTOR * STEP_VECTOR
    row_inside = tl.full([1, 1, 1], 1, tl.int1) if LAYOUT[DIVIDED] else row < row_end
    data_row = row if LAYOUT[DIVIDED] else tl.where(row_inside, row, row % ROW_VECTOR)
    start = time_end - splits * tiles * (CHUNKS * STEPS) if REVERSE and not LAYOUT[DIVIDED] else 0

    split = tl.program_id(1)
    if LAUNCH_MODE == REDUCE:
        split += 1 if REVERSE else 0  # no split reads the aggregate of the split that the scan reaches last
    aggregate = row if LAYOUT[ONE_BATCH] else batch.to(tl.int64) * rows + row  # type: ignore[union-attr]
    aggregate_stride = (1 if LAYOUT[ONE_BATCH] else (tl.num_programs(0) // blocks).to(tl.int64)) * rows
    carry = tl.full([ROWS, 1, 1], 0, TYPE)
    decay_so_far = tl.full([ROWS, 1, 1], 1, TYPE)
    # 0 * y, added over the results: 0, or NaN if a result is NaN or infinite. Adding it first over adjacent steps saves registers. At the
    # end, a maximum of integers takes one instruction per warp, a sum of floats ten.
    ADJACENT: tl.constexpr = LAYOUT[VECTOR] if SLICE_STEPS > 1 and LAYOUT[VECTOR] > 1 else 1
    zero_if_finite = tl.full([ROWS, SLICE_STEPS // ADJACENT, CHUNKS], 0, TYPE)
    if LAUNCH_MODE == RESUME:
        carry = _resume(aggregates, aggregate, aggregate_stride, row < rows, split, splits, REVERSE, SPLITS)

    # A thread loads the next tile only after the scan of this one; other programs of the multiprocessor load meanwhile. Loading it before
    # the scan takes GAE in [N, T] from 72 to 121 registers and from 31 to 36 instructions per element (T = 2048), and GAE in [T, N] to 228
    # registers.
    for i in range(tiles):
        tile = split * tiles + (tiles - 1 - i if REVERSE else i)
        places, masks = (), ()
        for s in tl.static_range(SLICES):
            time = start + tile * (CHUNKS * STEPS) + time_in_tile + s
            inside = row_inside
            if not LAYOUT[DIVIDED]:
                time_inside = time >= 0 if REVERSE else time < time_end
                time = tl.where(time_inside, time, step % STEP_VECTOR)
                inside = row_inside & time_inside
            places = places + ((batch, time, data_row, length),)  # type: ignore[assignment]
            masks = masks + (inside,)  # type: ignore[assignment]
        steps = _load_steps((coefficients, values, flags), strides, places, MODES, LAYOUT, TYPE)

        # The maps of the slices and, composed, of the chunks.
        maps, maps_to_next = (), ()
        chunk_a, chunk_x = tl.full([1, 1, 1], 1, TYPE), tl.full([1, 1, 1], 0, TYPE)
        for s in tl.static_range(SLICES):
            here, before, after, last = _step_of_slice(steps, places, _slice(s, SLICES, REVERSE), ENDS)
            x = SOURCE(here, before, after, last)
            decaying = here if REVERSE else before
            a, x = tl.broadcast(DECAY(decaying[0], decaying[1], decaying[2]), x)
            slice_a, slice_x = a, x
            if SLICE_STEPS > 1:
                if NEEDS_NEXT:
                    a, x, a_next, x_next = _scan_both(a, x, 1, REVERSE)
                    maps_to_next = maps_to_next + ((a_next, x_next),)  # type: ignore[assignment]
                else:
                    a, x = tl.associative_scan((a, x), 1, _compose, reverse=REVERSE)
                slice_a, slice_x = _latest_map(a, x, step, 1, REVERSE)
            maps = maps + ((a, x),)  # type: ignore[assignment]
            chunk_a, chunk_x = _compose(chunk_a, chunk_x, slice_a, slice_x) if s > 0 else (slice_a, slice_x)

        # The value entering a chunk: the maps of the earlier chunks, applied to the carry.
        y = carry
        if CHUNKS > 1:
            chunk_a, chunk_x, entry_a, entry_x = _scan_both(chunk_a, chunk_x, 2, False)
            y = entry_x + entry_a * carry

        if LAUNCH_MODE == REDUCE:
            chunk_a, chunk_x = _latest_map(chunk_a, chunk_x, chunk, 2, False)
            carry = chunk_x + chunk_a * carry
            decay_so_far *= chunk_a
        else:
            for s in tl.static_range(SLICES):
                a, x = maps[s]
                y_next = y
                if SLICE_STEPS > 1 and NEEDS_NEXT:
                    y_next = maps_to_next[s][1] if ONE_CHUNK else maps_to_next[s][1] + maps_to_next[s][0] * y
                y = x if ONE_CHUNK and s == 0 else x + a * y
                here, before, after, last = _step_of_slice(steps, places, _slice(s, SLICES, REVERSE), ENDS)
                results = OUTPUTS(here, before, after, last, y, y_next)
                if LAYOUT[MASKED]:
                    results = _zero_unless(here[2][len(flags) - 1], results)
                offset = _offset(strides[0], places[_slice(s, SLICES, REVERSE)], 0, LAYOUT)
                for k in tl.static_range(len(outputs)):
                    tl.store(outputs[k] + offset, results[k], mask=masks[_slice(s, SLICES, REVERSE)])
            carry = _latest(_latest(y, step, 1, REVERSE) if SLICE_STEPS > 1 else y, chunk, 2, False)
            zero_if_finite += tl.sum(tl.reshape(0.0 * y, [ROWS, SLICE_STEPS // ADJACENT, ADJACENT, CHUNKS]), 2)

    if LAUNCH_MODE == REDUCE:
        pointer = aggregate + tl.program_id(1) * aggregate_stride
        tl.store(aggregates[0] + pointer, decay_so_far, mask=row < rows)
        tl.store(aggregates[1] + pointer, carry, mask=row < rows)
    elif tl.max((zero_if_finite != 0).to(tl.int32)) != 0:  # NaN
        begin = start + split * tiles * (CHUNKS * STEPS)
        end = tl.minimum(begin + tiles * (CHUNKS * STEPS), length)
        scan_step_by_step(
            (coefficients, values, flags),
            outputs,
            strides,
            batch,
            data_row,
            row_inside,
            length,
            tl.maximum(begin, 0),
            end,
            DECAY,
            SOURCE,
            OUTPUTS,
            REVERSE,
            MODES,
            _of_single_steps(LAYOUT),
            TYPE,
        )
