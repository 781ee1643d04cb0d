"""How a GPU's work on a scan is cut up: the one table. Pure Python, no device code.

A program takes tiles of ``rows`` sequences and ``chunks * steps`` consecutive steps, one after the other. What decides:

* Enough bytes in flight. A multiprocessor reaches its share of the bandwidth with some 20 KB of loads under way, so every thread
  loads several steps before it needs the first, and where sequences are few, more warps share the time of each.
* Registers. A step held in a thread costs about five of them in GAE and about twice that in V-trace's gradient; beyond 255 a
  thread they spill, beyond 128 fewer than 16 warps fit.
* Whole sectors. Where rows are contiguous ([T, N]), 16 threads of 8 bytes side by side read whole lines; each scans its ``steps`` in
  registers, ``chunks`` go to further threads and warps, and one barrier joins them. Where time is contiguous ([N, T]), a warp
  reads 16 bytes a thread along time and scans by shuffles; one warp to a program knows no barrier.
"""

from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional


class Blocks(NamedTuple):
    """All but ``splits`` are powers of two."""

    rows: int
    steps: int
    chunks: int
    num_warps: int
    # Elements side by side that a thread loads at once, where strides and alignment allow.
    vector: int
    # Parts of time that are scanned at once; more than one costs a second launch and a second reading of the inputs.
    splits: int = 1


# Elements that a thread holds at once, by the number of values and outputs of a step: up to 6, up to 11, any.
_ELEMENTS = ((6, 16), (11, 8), (99, 4))
# A loop over tiles with barriers takes registers of its own.
_ELEMENTS_IN_A_LOOP = 8
_FEWEST_ELEMENTS = 4
_MOST_WARPS = 8
_MOST_SPLITS = 128
# Splitting pays from so much time on, and where it makes this many parts.
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
    """For ``batches * rows`` sequences of ``length`` steps.

    Args:
        rows_contiguous: whether rows are side by side in memory; else the steps of a row are.
        batches: groups of rows between which rows are not evenly spaced.
        itemsize: bytes of a value.
        streams: how many values and outputs a step has.
        multiprocessors: of the device.
        warp_size: 64 on some of AMD's.
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
        # One thread takes all steps: nobody waits.
        steps = _power_of_two(length)
        vector = max(1, min(8, elements) // steps)
        warps = 4 if batches * rows > 8 * multiprocessors * warp_size * vector else 1
        return Blocks(min(_power_of_two(rows), vector * warp_size * warps), steps, 1, warps, vector)

    vector = max(1, 8 // itemsize)
    # From the whole line down to a sector, until there is a program for each multiprocessor, or two where a program has to wait
    # for its next tile.
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
        # All of it fits at once: the shorter each thread's part, the sooner it is done.
        elements = min(elements, max(vector, 4))
    tile = warp_size * elements
    if length > 128 and sequences < 4 * multiprocessors:
        # Few rows: several warps along the time of each.
        steps = min(_power_of_two(length), _MOST_WARPS * tile)
        return Blocks(1, steps, 1, max(1, steps // tile), vector)
    if length > 128:
        return Blocks(1, min(_power_of_two(length), tile), 1, 1, vector)
    steps = _power_of_two(length)
    warps = 4
    width = min(max(1, tile * warps // steps), _power_of_two(rows))
    return Blocks(width, steps, 1, max(1, min(warps, width * steps // tile)), vector)


def _power_of_two(number: int, most: int = 1 << 30) -> int:
    """The least that is at least ``number``, or ``most``."""
    return min(1 << max(0, number - 1).bit_length(), most)


override: Optional[Blocks] = None


@contextmanager
def forced(blocks: Blocks) -> Iterator[None]:
    """Every launch inside uses ``blocks``: for tests and for sweeps."""
    global override
    previous, override = override, blocks
    try:
        yield
    finally:
        override = previous
