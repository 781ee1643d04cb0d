"""The tile sizes of the scan kernel. This file is their only table, in pure Python without device code.

A row is one sequence: one scan along time. A program, one instance of the kernel, processes ``rows`` rows, tile by tile along time. A tile
has ``chunks * steps`` consecutive steps. :class:`Blocks` explains each size. The sizes follow from three limits of a GPU:

* Memory latency. A multiprocessor reaches its part of the memory bandwidth only if about 20 KB of its loads are pending at every moment.
  So each thread loads several steps before it uses the first, and if there are few rows, several warps share the steps of one row.
* Registers. One step costs a thread about five registers in GAE and about ten in the gradient of V-trace. Above 255 registers a
  thread spills; above 128, fewer than 16 warps fit on a multiprocessor.
* Width of memory accesses. If rows are contiguous (``[T, N]``), 16 adjacent threads read 8 bytes each: one cache line of 128 bytes. Each
  thread scans ``steps`` steps in registers; other threads and warps scan the other chunks; joining the chunks needs one barrier. If time
  is contiguous (``[N, T]``), each thread reads 16 bytes along time, and the threads of a warp exchange partial results by shuffles. Only
  programs with several warps need a barrier. If time is contiguous and T is odd, accesses have one element, and each thread scans ``steps``
  steps as in ``[T, N]``.

``tests/kernels/test_triton_ahead_of_time.py`` compiles the kernel for four GPUs and checks registers, spills and the width of accesses.
The sizes have not been tuned by timings on a GPU yet.
"""

import math
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional


class Blocks(NamedTuple):
    """The tile of one launch. All sizes except ``splits`` are powers of two."""

    # Number of rows of a program.
    rows: int
    # Number of consecutive steps of a chunk. If rows are contiguous or `vector` is 1, one thread scans a chunk in registers.
    steps: int
    # Number of chunks of a tile. The chunks are scanned in parallel and then joined.
    chunks: int
    # Number of warps of a program.
    num_warps: int
    # Number of adjacent elements (rows or steps) that a thread loads in one access, if strides and alignment allow it.
    vector: int
    # Number of splits of time, each scanned by another program. Two or more need a second launch, which reads the inputs again.
    splits: int = 1


# (streams, elements): if a step has at most `streams` values and outputs, a thread holds `elements` elements (rows x steps) of each. More
# streams need more registers per element.
_ELEMENTS = ((6, 16), (11, 8), (math.inf, 4))
_MIN_ELEMENTS = 4
_MAX_WARPS = 8
_MAX_SPLITS = 128
_THREADS_PER_MULTIPROCESSOR = 2048
_MIN_STEPS_TO_SPLIT = 2048
_MIN_TILES_TO_SPLIT = 4


def choose_blocks(
    rows_contiguous: bool,
    batches: int,
    rows: int,
    length: int,
    itemsize: int,
    streams: int,
    multiprocessors: int = 132,
    warp_size: int = 32,
) -> Blocks:
    """Returns the tile sizes for ``batches * rows`` rows of ``length`` steps.

    Time is split if there are few rows and many steps: if the programs occupy at most half of the multiprocessors, several programs share
    the steps of each row, about two programs per multiprocessor.

    Args:
        rows_contiguous: whether adjacent rows are adjacent in memory. Otherwise the tile sizes are those for contiguous time.
        batches: the number of groups of rows. Adjacent rows of a group differ by one stride, adjacent groups by another.
        rows: the number of rows in a group.
        length: the number of steps.
        itemsize: the size of a value in bytes.
        streams: the number of inputs and outputs with a number for each step: ``Form.values`` and ``Form.outputs``.
        multiprocessors: the number of multiprocessors of the device.
        warp_size: the threads of a warp; 64 on some AMD devices.
    """
    elements = next(elements for max_streams, elements in _ELEMENTS if streams <= max_streams)
    if itemsize == 8:
        elements = max(_MIN_ELEMENTS, elements // 2)
    blocks_for_layout = _rows_contiguous if rows_contiguous else _time_contiguous
    blocks = blocks_for_layout(batches, rows, length, itemsize, elements, multiprocessors, warp_size)
    if rows_contiguous and blocks.vector == 1 and streams <= 3 and length > blocks.steps * blocks.chunks:
        # With accesses of one element in a loop, 16 steps take 168 registers in the gradient of TD(lambda).
        blocks = blocks._replace(steps=min(blocks.steps, 8))
    programs = batches * _ceil_div(rows, blocks.rows)
    tiles = _ceil_div(length, blocks.steps * blocks.chunks)
    if length < _MIN_STEPS_TO_SPLIT or tiles < _MIN_TILES_TO_SPLIT or 2 * programs > multiprocessors:
        return blocks
    return blocks._replace(splits=min(tiles, 2 * multiprocessors // programs, _MAX_SPLITS))


def _rows_contiguous(
    batches: int, rows: int, length: int, itemsize: int, elements: int, multiprocessors: int, warp_size: int
) -> Blocks:
    """As :func:`choose_blocks`, without splits, if rows are contiguous. ``elements`` is the largest number of elements per thread."""
    if length <= elements:
        # One thread handles all steps of one or more adjacent rows; no synchronisation is needed.
        steps = _power_of_two(length)
        vector = max(1, min(8, elements) // steps)
        warps = 4 if batches * rows > 8 * multiprocessors * warp_size * vector else 1
        return Blocks(min(_power_of_two(rows), vector * warp_size * warps), steps, 1, warps, vector)

    vector = math.gcd(max(1, 8 // itemsize), rows)
    # Halve the width from a cache line to a sector until there are enough programs. With more than 128 steps a program waits for its next
    # tile, and a second program on the multiprocessor works during that time. But if accesses have one element, narrow tiles need more
    # instructions, and in the gradient of V-trace 140 registers.
    enough = 0.75 * multiprocessors if length <= 128 or vector < 8 // itemsize else 1.5 * multiprocessors
    width = min(128 // itemsize, _power_of_two(rows))
    while width > 32 // itemsize and batches * _ceil_div(rows, width) < enough:
        width //= 2
    programs = batches * _ceil_div(rows, width)
    lanes = max(1, width // vector)  # threads beside each other along the rows
    # As many chunks as fill a warp, times the warps of a program: 16 warps per multiprocessor are enough.
    warps = _power_of_two(16 * multiprocessors // programs, _MAX_WARPS)
    max_chunks = max(1, warp_size // lanes) * warps
    steps = elements // vector
    chunks = min(max_chunks, _power_of_two(_ceil_div(length, steps)))
    return Blocks(width, steps, chunks, max(1, lanes * chunks // warp_size), vector)


def _time_contiguous(
    batches: int, rows: int, length: int, itemsize: int, elements: int, multiprocessors: int, warp_size: int
) -> Blocks:
    """As :func:`_rows_contiguous`, if time is contiguous."""
    vector = math.gcd(max(1, 16 // itemsize), length)
    total_rows = batches * rows
    if vector == 1:
        # A thread scans the steps of a chunk, as if rows were contiguous. Longer chunks have fewer shuffles per step, but the accesses of
        # adjacent threads are further apart.
        steps = min(elements, 8, _power_of_two(length))
        warps = 4 if length <= 128 else (_MAX_WARPS if total_rows < 4 * multiprocessors else 1)
        chunks = min(_power_of_two(_ceil_div(length, steps)), warp_size * warps)
        width = min(warp_size * warps // chunks, _power_of_two(rows)) if length <= 128 else 1
        return Blocks(width, steps, chunks, max(1, width * chunks // warp_size), vector)
    if total_rows * length <= multiprocessors * _THREADS_PER_MULTIPROCESSOR * 4:
        # With 4 elements per thread, all threads run at once. Fewer elements per thread then finish sooner.
        elements = min(elements, max(vector, 4))
    tile = warp_size * elements
    if length > 128 and total_rows < 4 * multiprocessors:
        # There are few rows: several warps scan the steps of one row.
        steps = min(_power_of_two(length), _MAX_WARPS * tile)
        return Blocks(1, steps, 1, max(1, steps // tile), vector)
    if length > 128:
        return Blocks(1, min(_power_of_two(length), tile), 1, 1, vector)
    # Rows are short: a tile holds several whole rows.
    steps = _power_of_two(length)
    warps = 4
    width = min(max(1, tile * warps // steps), _power_of_two(rows))
    return Blocks(width, steps, 1, max(1, min(warps, width * steps // tile)), vector)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(number: int, largest: int = 1 << 30) -> int:
    """Returns the smallest power of two that is at least ``number``, but at most ``largest``."""
    return min(1 << max(0, number - 1).bit_length(), largest)


# If not None, every launch uses these sizes instead of the result of `choose_blocks`; see `forced`.
override: Optional[Blocks] = None


@contextmanager
def forced(blocks: Blocks) -> Iterator[None]:
    """A context in which every launch uses ``blocks``, for tests and measurements."""
    global override
    previous, override = override, blocks
    try:
        yield
    finally:
        override = previous
