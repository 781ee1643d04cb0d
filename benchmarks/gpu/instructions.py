"""Machine instructions that each kernel executes for an element on an H100, counted without a GPU.

``python -m a2c_compiled.benchmarks.gpu.instructions [FORM ...]``, ``gae vtrace`` by default.

executed = (instructions outside of the loop over tiles + tiles of a program * the loop's body) / (elements of a thread), from the machine
code; predicated instructions count. A multiprocessor issues 4 warp instructions a cycle: 924 G/s on an H100, where a copy moves about
3.0 TB/s. A GAE element of 22 bytes takes 7.3 ps of memory time, in which 217 instructions could be issued at best, some 80 to 90 at what
kernels with barriers reach.
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
# In memory, and the dimension of time. The last two of each layout are ragged: no tile divides them.
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


def lines(form: Form, shape: Tuple[int, int], dim: int) -> Iterator[str]:
    """One for each kernel that computes ``form`` over float32 of ``shape``."""
    rows, steps = (shape[-1], shape[-2]) if dim == -2 else shape
    blocks = blocks_for(TARGET, form, shape, dim)
    tiles = max(1, -(-steps // (blocks.steps * blocks.chunks)) // blocks.splits)
    held = blocks.rows * blocks.steps * blocks.chunks / (TARGET.warp_size * blocks.num_warps)
    for part, kernel in enumerate(compiled(form, shape, dim, torch.float32, blocks)):
        names, body = _instructions(kernel)
        executed = (len(names) - len(body) + tiles * len(body)) / (tiles * held)
        kinds = Counter(name.split(".")[0] for name in body or names)
        registers, stack = registers_and_spills(kernel)
        yield (
            f"{form.name:13s} {'[T, N]' if dim == -2 else '[N, T]'} {rows:6d} x {steps:<6d} part {part}:"
            f" {executed:6.1f} executed an element, {len(body) / held:6.1f} in the loop, {registers:>3} registers,"
            f" {stack:>3} stack, {held:2.0f} elements a thread, BAR {kinds['BAR']}, SHFL {kinds['SHFL']}"
        )


def _instructions(kernel: Any) -> Tuple[List[str], List[str]]:
    """Names of all instructions, and of those in the longest loop."""
    names: List[str] = []
    labels: Dict[str, int] = {}
    branches: List[Tuple[int, str]] = []
    for line in nvidia_tool("nvdisasm", kernel).splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(names)
            continue
        found = re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)(.*)", line)
        if found and found[1] != "NOP":
            target = re.search(r"`\((\.L_x_\d+)\)", found[2])
            if found[1].startswith("BRA") and target:
                branches.append((len(names), target[1]))
            names.append(found[1])
    loops = [names[labels[name] : at + 1] for at, name in branches if labels.get(name, at) < at]
    return names, max(loops, key=len, default=[])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    forms = {form.name: form for form in FORMS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("form", nargs="*", help=f"any of {', '.join(forms)} (default: gae vtrace)")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), metavar="N", help="the first N alone")
    arguments = parser.parse_args(argv)
    for name in arguments.form:
        if name not in forms:
            parser.error(f"form: expected any of {', '.join(forms)}, got {name!r}")
    compile_for(TARGET)
    for name in arguments.form or ("gae", "vtrace"):
        for shape, dim in SHAPES[: arguments.shapes]:
            for line in lines(forms[name], shape, dim):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
