"""The tile sizes of the scan kernel. This file is their only table, in pure Python without device code.

A sequence is one scan along time; a row holds one sequence. A program processes ``rows`` sequences, tile by tile along time. A tile
has ``chunks * steps`` consecutive steps. :class:`Blocks` says what each size means. The sizes follow from three limits of a GPU:

* Bytes in flight. A multiprocessor reaches its share of the memory bandwidth with about 20 KB of loads in flight. So each thread
  loads several steps before it uses the first, and if there are few sequences, several warps share the steps of one sequence.
* Registers. One step costs a thread about five registers in GAE and about ten in the gradient of V-trace. Above 255 registers a
  thread spills; above 128, fewer than 16 warps fit on a multiprocessor.
* Whole sectors of memory. If rows are contiguous (``[T, N]``), 16 threads side by side read 8 bytes each, which is a whole line. Each
  thread scans its ``steps`` in registers, the ``chunks`` are other threads and warps, and one barrier joins them. If time is
  contiguous (``[N, T]``), each thread of a warp reads 16 bytes along time, and the warp scans by shuffles; one warp per program needs
  no barrier.

``tests/kernels/test_triton_ahead_of_time.py`` compiles the kernel for four GPUs and checks registers, spills and the width of accesses.
The sizes have not been tuned by timings on a GPU yet.
"""

from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional


class Blocks(NamedTuple):
    """The tile of one launch. All sizes except ``splits`` are powers of two."""

    # Sequences of a program.
    rows: int
    # Consecutive steps of a chunk. If rows are contiguous, one thread scans them in registers.
    steps: int
    # Groups of `steps` steps in a tile, scanned in parallel and then joined.
    chunks: int
    # Warps of a program.
    num_warps: int
    # Adjacent elements that a thread loads in one access, if strides and alignment allow it.
    vector: int
    # Parts of time that different programs scan. More than one needs a second launch, which reads the inputs again.
    splits: int = 1


# (streams, elements): with up to `streams` values and outputs per step, a thread holds `elements` steps at once. More streams need more
# registers per step.
_ELEMENTS = ((6, 16), (11, 8), (99, 4))
# The largest number of elements per thread if a program loops over tiles with barriers, because the loop needs registers too.
_ELEMENTS_IN_A_LOOP = 8
_FEWEST_ELEMENTS = 4
_MOST_WARPS = 8
_MOST_SPLITS = 128
# Time is split only if there are at least _FEWEST_STEPS_TO_SPLIT steps and at least _FEWEST_SPLITS tiles.
_FEWEST_STEPS_TO_SPLIT = 2048
_FEWEST_SPLITS = 4


def choose(
    rows_contiguous: bool,
    batches: int,
    rows: int,
    length: int,
    itemsize: int,
    streams: int,
    multiprocessors: int = 132,
    warp_size: int = 32,
) -> Blocks:
    """Returns the tile sizes for ``batches * rows`` sequences of ``length`` steps.

    If the programs occupy at most half of the multiprocessors and time is long, time is cut into splits, which different programs scan,
    until there are about two programs per multiprocessor.

    Args:
        rows_contiguous: whether adjacent rows are adjacent in memory. Otherwise the tile sizes are those for contiguous time.
        batches: the number of groups of rows. One stride describes the rows of a group, and another the groups.
        rows: the number of rows in a group.
        length: the number of steps.
        itemsize: the size of a value in bytes.
        streams: the number of values and outputs of the form (the recurrence that the kernel computes).
        multiprocessors: the number of multiprocessors of the device.
        warp_size: the threads of a warp; 64 on some AMD devices.
    """
    choice = _rows_contiguous if rows_contiguous else _time_contiguous
    elements = next(elements for most, elements in _ELEMENTS if streams <= most)
    if itemsize == 8:
        elements = max(_FEWEST_ELEMENTS, elements // 2)
    blocks = choice(batches, rows, length, itemsize, elements, multiprocessors, warp_size)
    programs = batches * -(-rows // blocks.rows)
    tiles = -(-length // (blocks.steps * blocks.chunks))
    if length < _FEWEST_STEPS_TO_SPLIT or tiles < _FEWEST_SPLITS or 2 * programs > multiprocessors:
        return blocks
    return blocks._replace(splits=min(tiles, 2 * multiprocessors // programs, _MOST_SPLITS))


def _rows_contiguous(
    batches: int, rows: int, length: int, itemsize: int, elements: int, multiprocessors: int, warp_size: int
) -> Blocks:
    if length <= elements:
        # One thread handles all steps of a sequence; no synchronisation is needed.
        steps = _power_of_two(length)
        vector = max(1, min(8, elements) // steps)
        warps = 4 if batches * rows > 8 * multiprocessors * warp_size * vector else 1
        return Blocks(min(_power_of_two(rows), vector * warp_size * warps), steps, 1, warps, vector)

    vector = max(1, 8 // itemsize)
    # Reduce the width from a whole line towards a sector until there are enough programs: about one per multiprocessor, or two if
    # time is long. A long scan waits for its next tile, and a second program can use that time.
    wanted = 0.75 * multiprocessors if length <= 128 else 1.5 * multiprocessors
    width = min(16 * vector, _power_of_two(rows))
    while width > 4 * vector and batches * -(-rows // width) < wanted:
        width //= 2
    programs = batches * -(-rows // width)
    lanes = max(1, width // vector)
    most_chunks = max(1, warp_size // lanes) * _power_of_two(16 * multiprocessors // programs, _MOST_WARPS)
    steps = elements // vector
    if length > steps * most_chunks:
        steps = max(_FEWEST_ELEMENTS, min(elements // 2, _ELEMENTS_IN_A_LOOP)) // vector
    chunks = min(most_chunks, _power_of_two(-(-length // steps)))
    return Blocks(width, steps, chunks, max(1, lanes * chunks // warp_size), vector)


def _time_contiguous(
    batches: int, rows: int, length: int, itemsize: int, elements: int, multiprocessors: int, warp_size: int
) -> Blocks:
    vector = max(1, 16 // itemsize)
    sequences = batches * rows
    if sequences * length <= multiprocessors * 64 * 32 * 4:
        # All data fits on the device at once, so a shorter part per thread finishes sooner.
        elements = min(elements, max(vector, 4))
    tile = warp_size * elements
    if length > 128 and sequences < 4 * multiprocessors:
        # There are few sequences: several warps share the time of each.
        steps = min(_power_of_two(length), _MOST_WARPS * tile)
        return Blocks(1, steps, 1, max(1, steps // tile), vector)
    if length > 128:
        return Blocks(1, min(_power_of_two(length), tile), 1, 1, vector)
    steps = _power_of_two(length)
    warps = 4
    width = min(max(1, tile * warps // steps), _power_of_two(rows))
    return Blocks(width, steps, 1, max(1, min(warps, width * steps // tile)), vector)


def _power_of_two(number: int, most: int = 1 << 30) -> int:
    """Returns the smallest power of two that is at least ``number``, but at most ``most``."""
    return min(1 << max(0, number - 1).bit_length(), most)


# Replaces the result of `choose` in every launch; see `forced`.
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
