"""Estimates, from the machine code and without a GPU, how many instructions each kernel executes per element on an H100.

Run ``python -m a2c_compiled.benchmarks.gpu.instructions [FORM ...]``. A form is a recurrence along time with its inputs and outputs, see
:mod:`a2c_compiled.kernels.scan_forms`; the default forms are ``gae vtrace``. ``--out FILE`` writes a table in Markdown.

A program (Triton's name of a thread block) loops over tiles: blocks of rows and steps that its threads hold in registers. A predicated
instruction counts as executed. The number of tiles per program is rounded down. Then::

    executed = (instructions outside the loop over tiles + tiles * instructions in the loop) / (tiles * elements per thread and tile)

For comparison: the 132 multiprocessors of an H100 issue 4 warp instructions per cycle each: 924 G/s, or 29.6 T thread instructions/s. A
GAE element is 22 bytes (5 float32, 2 bool), which take 7.3 ps at 3.0 TB/s, the bandwidth of a copy. In that time the GPU can execute at
most 216 thread instructions. Kernels with barriers reach some 80 to 90.

The order of the instructions also tells how many bytes a thread waits for at once. ``requested`` is the largest number of bytes that a
thread loads before it reads one of them. ``ahead`` is the number of bytes that a thread has loaded and not yet read when it ends the last
shuffle or barrier of the loop, thus the scan of this tile. If it is 0, the thread loads the next tile only after this scan, and other
programs of the multiprocessor load meanwhile.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import triton  # type: ignore[import-untyped]

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


class Instruction(NamedTuple):
    """One machine instruction: its name with modifiers, as in ``LDG.E.64``, and its operands."""

    name: str
    operands: str


class Count(NamedTuple):
    """The counts of one kernel launch, per thread. Barriers, shuffles and bytes: in the loop, or in the whole kernel without a loop."""

    form: str
    layout: str
    rows: int
    steps: int
    launch: int
    executed: float  # instructions per element
    loop: float  # of them in the loop
    registers: int
    stack: int  # bytes
    elements: int  # per tile
    barriers: int
    shuffles: int
    requested: int  # bytes of loads at once, see above
    ahead: int  # bytes

    def line(self) -> str:
        """Returns the counts as one line of text."""
        return (
            f"{self.form:13s} {self.layout} {self.rows:6d} x {self.steps:<6d} launch {self.launch}:"
            f" {self.executed:6.1f} executed per element, {self.loop:6.1f} of them in the loop,"
            f" {self.registers:>3} registers per thread, {self.stack:>3} bytes of stack,"
            f" {self.elements:2d} elements per thread and tile, BAR {self.barriers}, SHFL {self.shuffles},"
            f" {self.requested:3d} bytes requested, {self.ahead} ahead"
        )


def counts(form: Form, shape: Tuple[int, int], dim: int) -> Iterator[Count]:
    """Yields the counts of each kernel launch of ``form`` on float32 data: one, or two if time is split between programs.

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
        instructions, body = _instructions(kernel)
        kinds = Counter(instruction.name.split(".")[0] for instruction in body or instructions)
        yield Count(
            form.name,
            "[T, N]" if dim == -2 else "[N, T]",
            rows,
            steps,
            launch,
            (len(instructions) - len(body) + tiles * len(body)) / (tiles * elements),
            len(body) / elements,
            *registers_and_spills(kernel),
            int(elements),
            kinds["BAR"],
            kinds["SHFL"],
            *_bytes_loaded(body or instructions),
        )


def _instructions(kernel: Any) -> Tuple[List[Instruction], List[Instruction]]:
    """Returns the instructions up to the first exit, and those of the longest loop (empty without a loop).

    After that exit, the machine code repeats the scan step by step. Only results that are NaN or infinite need this.
    """
    instructions: List[Instruction] = []
    labels: Dict[str, int] = {}
    branches: List[Tuple[int, str]] = []
    for line in nvidia_tool("nvdisasm", kernel).splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(instructions)
            continue
        # A line is: /*address*/ @!P0 NAME.MODIFIERS operands. The predicate @!P0 is optional.
        found = re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)(.*)", line)
        if found and found[1] != "NOP":
            target = re.search(r"`\((\.L_x_\d+)\)", found[2])
            if found[1].startswith("BRA") and target:
                branches.append((len(instructions), target[1]))
            instructions.append(Instruction(found[1], found[2]))
            if found[1] == "EXIT":
                break
    # A loop goes from a label to a later branch that jumps back to the label.
    loops = [instructions[labels[label] : i + 1] for i, label in branches if labels.get(label, i) < i]
    return instructions, max(loops, key=len, default=[])


def _bytes_loaded(instructions: Sequence[Instruction]) -> Tuple[int, int]:
    """Returns how many bytes a thread requests before it reads one of them, at most, and how many when it ends its last exchange."""
    pending: Dict[str, int] = {}  # bytes of the loads whose result has not been read yet, by the first register of the result
    most = ahead = 0
    for instruction in instructions:
        registers = re.findall(r"\bR\d+\b", instruction.operands)
        if instruction.name.startswith("LDG"):
            registers, written = registers[1:], registers[0]
        if any(register in pending for register in registers):
            # A read of a result waits for this load, and for those before it.
            last = max(i for i, register in enumerate(pending) if register in registers)
            pending = dict(list(pending.items())[last + 1 :])
        if instruction.name.startswith("LDG"):
            width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", instruction.name)
            pending[written] = int(width[1].lstrip("US")) // 8 if width else 4
            most = max(most, sum(pending.values()))
        if instruction.name.startswith(("SHFL", "BAR")):
            ahead = sum(pending.values())
    return most, ahead


def table(rows: Sequence[Count]) -> str:
    """Returns the counts as a table in Markdown."""
    header = (
        "form", "layout", "rows x steps", "launch", "executed", "in the loop", "registers", "stack", "elements", "BAR", "SHFL",
        "bytes requested", "ahead",
    )  # fmt: skip
    lines = [header, ("---",) * len(header)]
    for row in rows:
        sizes = (f"{row.rows} x {row.steps}", row.launch, f"{row.executed:.1f}", f"{row.loop:.1f}")
        lines.append((row.form, row.layout, *(str(cell) for cell in (*sizes, *row[7:]))))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    forms = {form.name: form for form in FORMS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("form", nargs="*", help=f"forms to compile: any of {', '.join(forms)} (default: gae vtrace)")
    parser.add_argument(
        "--shapes", type=int, default=len(SHAPES), metavar="N", help="use only the first N shapes (default: all)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts to this file, as a table in Markdown")
    arguments = parser.parse_args(argv)
    for name in arguments.form:
        if name not in forms:
            parser.error(f"form: expected any of {', '.join(forms)}, got {name!r}")
    compile_for(TARGET)
    rows: List[Count] = []
    for name in arguments.form or ("gae", "vtrace"):
        for shape, dim in SHAPES[: arguments.shapes]:
            for row in counts(forms[name], shape, dim):
                print(row.line(), flush=True)
                rows.append(row)
    if arguments.out:
        text = (
            f"Counted by `python -m a2c_compiled.benchmarks.gpu.instructions` with triton {triton.__version__}, per thread.\n\n"
        )
        arguments.out.write_text(text + table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
