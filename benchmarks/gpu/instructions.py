"""Estimates, from the machine code and without a GPU, how many instructions each kernel executes per element on an H100.

Run ``python -m a2c_compiled.benchmarks.gpu.instructions [FORM ...]``. A form is a recurrence along time with its inputs and outputs, see
:mod:`a2c_compiled.kernels.scan_forms`; the default forms are ``gae vtrace``.

A program (Triton's name of a thread block) loops over tiles: blocks of rows and steps that its threads hold in registers. A predicated
instruction counts as executed. The number of tiles per program is rounded down. Then::

    executed = (instructions outside the loop over tiles + tiles * instructions in the loop) / (tiles * elements per thread and tile)

For comparison: the 132 multiprocessors of an H100 issue 4 warp instructions per cycle each: 924 G/s, or 29.6 T thread instructions/s. A
GAE element is 22 bytes (5 float32, 2 bool), which take 7.3 ps at 3.0 TB/s, the bandwidth of a copy. In that time the GPU can execute at
most 216 thread instructions. Kernels with barriers reach some 80 to 90.
"""

import argparse
import re
import sys
from collections import Counter
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from a2c_compiled.benchmarks.gpu.ahead_of_time import (
    TARGETS,
    blocks_for,
    compile_for,
    compiled,
    nvidia_tool,
    registers_and_spills,
)
from a2c_compiled.kernels.scan_forms import FORMS, Form

TARGET = TARGETS["sm_90"]
# Shape in memory, and dimension of time. No tile size divides the last two shapes of each layout.
SHAPES = (
    ((8, 32768), -2),
    ((16, 32768), -2),
    ((32, 4096), -2),
    ((128, 4096), -2),
    ((512, 16384), -2),
    ((2048, 4096), -2),
    ((4096, 8192), -2),
    ((65536, 16), -2),
    ((127, 4095), -2),
    ((2047, 4095), -2),
    ((32768, 8), -1),
    ((4096, 32), -1),
    ((4096, 128), -1),
    ((64, 512), -1),
    ((4096, 2048), -1),
    ((8192, 4096), -1),
    ((16, 65536), -1),
    ((4095, 127), -1),
    ((4095, 2047), -1),
)


def report_lines(form: Form, shape: Tuple[int, int], dim: int) -> Iterator[str]:
    """Yields one line per kernel launch of ``form`` on float32 data: one launch, or two if time is split between programs.

    ``BAR`` and ``SHFL`` are the numbers of barriers and warp shuffles in the loop, or in the whole kernel if it has no loop.

    Args:
        form: the recurrence that the kernel computes.
        shape: shape of the data, two-dimensional.
        dim: dimension of time, -1 or -2.
    """
    rows, steps = (shape[-1], shape[-2]) if dim == -2 else shape
    blocks = blocks_for(TARGET, form, shape, dim)
    # Tiles along time, rounded up, divided among the programs that split time, rounded down.
    tiles = max(1, -(-steps // (blocks.steps * blocks.chunks)) // blocks.splits)
    elements = blocks.rows * blocks.steps * blocks.chunks / (TARGET.warp_size * blocks.num_warps)
    for launch, kernel in enumerate(compiled(form, shape, dim, torch.float32, blocks)):
        names, body = _instructions(kernel)
        executed = (len(names) - len(body) + tiles * len(body)) / (tiles * elements)
        kinds = Counter(name.split(".")[0] for name in body or names)
        registers, stack = registers_and_spills(kernel)
        yield (
            f"{form.name:13s} {'[T, N]' if dim == -2 else '[N, T]'} {rows:6d} x {steps:<6d} launch {launch}:"
            f" {executed:6.1f} executed per element, {len(body) / elements:6.1f} of them in the loop, {registers:>3} registers per thread,"
            f" {stack:>3} bytes of stack, {elements:2.0f} elements per thread and tile, BAR {kinds['BAR']}, SHFL {kinds['SHFL']}"
        )


def _instructions(kernel: Any) -> Tuple[List[str], List[str]]:
    """Returns the names of the instructions up to the first exit, and of those in the longest loop (empty without a loop).

    After that exit, the machine code repeats the scan step by step. Only results that are NaN or infinite need this.
    """
    names: List[str] = []
    labels: Dict[str, int] = {}
    branches: List[Tuple[int, str]] = []
    for line in nvidia_tool("nvdisasm", kernel).splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(names)
            continue
        # A line is: /*address*/ @!P0 NAME.MODIFIERS operands. The predicate @!P0 is optional.
        instruction = re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)(.*)", line)
        if instruction and instruction[1] != "NOP":
            target = re.search(r"`\((\.L_x_\d+)\)", instruction[2])
            if instruction[1].startswith("BRA") and target:
                branches.append((len(names), target[1]))
            names.append(instruction[1])
            if instruction[1] == "EXIT":
                break
    # A loop goes from a label to a later branch that jumps back to the label.
    loops = [names[labels[label] : i + 1] for i, label in branches if labels.get(label, i) < i]
    return names, max(loops, key=len, default=[])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    forms = {form.name: form for form in FORMS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("form", nargs="*", help=f"forms to compile: any of {', '.join(forms)} (default: gae vtrace)")
    parser.add_argument(
        "--shapes", type=int, default=len(SHAPES), metavar="N", help="use only the first N shapes (default: all)"
    )
    arguments = parser.parse_args(argv)
    for name in arguments.form:
        if name not in forms:
            parser.error(f"form: expected any of {', '.join(forms)}, got {name!r}")
    compile_for(TARGET)
    for name in arguments.form or ("gae", "vtrace"):
        for shape, dim in SHAPES[: arguments.shapes]:
            for line in report_lines(forms[name], shape, dim):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
