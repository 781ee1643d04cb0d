"""Compiles the Triton kernels for several GPUs, without a GPU, and checks registers, spills and the width of memory accesses.

Each target compiles in a process of its own, where Triton's interpreter is off. By default, a selection of kernels is compiled.
``A2C_EVERY_KERNEL=1`` compiles every entry of the tuning table in float32, which takes ten minutes per target.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

from a2c_compiled.benchmarks.gpu.ahead_of_time import (  # noqa: E402  (needs Triton)
    TARGETS,
    blocks_for,
    compile_for,
    compiled,
    registers_and_spills,
)
from a2c_compiled.kernels import scan_forms  # noqa: E402

# Shape and time dimension: a few steps, one tile, tiles of one warp and of several warps, splits, one element.
SHAPES = [
    ((5, 64), -2),
    ((16, 65536), -2),
    ((128, 4096), -2),
    ((2048, 4096), -2),
    ((65536, 16), -2),
    ((64, 5), -1),
    ((4096, 128), -1),
    ((64, 512), -1),
    ((4096, 2048), -1),
    ((16, 65536), -1),
    ((1, 1), -1),
]
# The shapes that every form compiles for, and those of GAE and the backward of V-trace, which has the most operands.
OF_EVERY_FORM = [1, 2, 3, 4, 6, 8, 9]
ON_OTHER_TARGETS = [2, 8]
EVERY_SHAPE = [
    (shape if dim == -2 else shape[::-1], dim)
    for dim in (-2, -1)
    for steps in (1, 2, 5, 8, 16, 20, 32, 64, 128, 200, 256, 512, 1024, 2048, 65536)
    for rows in (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
    if (shape := (steps, rows)) and steps * rows <= 2**26
]
FORWARD = ("linear_scan", "reward2go", "gae", "td_lambda")
# Forms that may use at most 128 registers, with which 16 warps fit on a multiprocessor.
HOT = ("linear_scan", "reward2go", "gae", "gae_backward", "td_lambda", "td_lambda_backward")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills(target):
    kernels = _compile_elsewhere(target)
    assert len(kernels) > 20
    for kernel in kernels:
        # 8 bytes are allowed in three cases, where they do not mean that registers are missing: ptxas sometimes spills them with only 80
        # registers in use; in float64, ptxas gives up a register so that one more program fits; the backward of V-trace has the
        # most operands, and two spilled registers per step cost nothing beside its loads.
        wide = kernel["dtype"] == "torch.float64" or kernel["form"] == "vtrace_backward"
        assert kernel["spills"] <= (8 if wide or kernel["registers"] <= 80 else 0), kernel
        assert kernel["registers"] <= TARGETS[target].registers, kernel
        if kernel["form"] in HOT and kernel["plain"]:
            assert kernel["registers"] <= 128, kernel
        if kernel["plain"] and kernel["blocks"]["splits"] == 1:
            # All operands of a tile have the same distribution over threads.
            assert kernel["conversions"] == 0, kernel
            if kernel["form"] in FORWARD and kernel["dtype"] == "torch.float32" and kernel["blocks"]["vector"] > 1:
                # Values are loaded as vectors. If time is contiguous, the loads of 4 bytes are the flags of 4 steps.
                narrow = kernel["loads of 4 bytes"]
                assert narrow == 0 if kernel["blocks"]["vector"] == 2 else narrow <= kernel["loads of 8 or 16 bytes"], kernel


def _compile_elsewhere(target: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    completed = subprocess.run([sys.executable, __file__, target], env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-4000:]
    return json.loads(completed.stdout)


def _compile_all(name: str) -> list[dict]:
    compile_for(TARGETS[name])

    def reports(form, shape, dim, dtype=torch.float32, **layout) -> list[dict]:
        rows, steps = (shape[-1], shape[-2]) if dim == -2 else shape
        blocks = blocks_for(TARGETS[name], form, shape, dim, dtype)
        key = (form.name, dtype, dim, blocks, -(-steps // (blocks.steps * blocks.chunks)) > 1)
        if not layout and key in seen:
            return []
        seen.add(key)
        described = {
            "form": form.name,
            "shape": shape,
            "dtype": str(dtype),
            "blocks": blocks._asdict(),
            # The usual data: contiguous, no odd sizes, more elements than one warp computes.
            "plain": not layout and rows % 16 == 0 and steps % 8 == 0 and rows * steps >= 1024,
        }
        return [{**described, **_report(kernel)} for kernel in compiled(form, shape, dim, dtype, blocks, **layout)]

    seen: set = set()
    kernels = []
    whole = bool(os.environ.get("A2C_EVERY_KERNEL"))
    for form in scan_forms.FORMS:
        chosen = OF_EVERY_FORM if name == "sm_90" else ON_OTHER_TARGETS
        if name == "sm_90" and form in (scan_forms.GAE, scan_forms.VTRACE_BACKWARD):
            chosen = range(len(SHAPES))
        shapes = EVERY_SHAPE if whole else [SHAPES[i] for i in chosen]
        for shape, dim in shapes:
            kernels += reports(form, shape, dim)
    for form in (scan_forms.GAE, scan_forms.VTRACE_BACKWARD):
        for shape, dim in [SHAPES[i] for i in ON_OTHER_TARGETS]:
            kernels += reports(form, shape, dim, torch.float64)
            kernels += reports(form, shape, dim, torch.bfloat16)
        for shape, dim in [((128, 4096), -2), ((4096, 127), -1)]:
            kernels += reports(form, shape, dim, per_step=True)
            kernels += reports(form, shape, dim, shared=False)
    return kernels


def _report(kernel) -> dict:
    """Describes a kernel. The step-by-step scan after the first store, which only NaN and infinity need, is left out."""
    registers, spills = registers_and_spills(kernel)
    if "cubin" in kernel.asm:
        loads = re.findall(r"ld\.global\S*?(\.v\d)?\.[bf](\d+)", kernel.asm["ptx"].split("st.global")[0])
        widths = [int(vector[2:] or 1) * int(bits) for vector, bits in loads]
    else:
        before_stores = re.split("(?:global|buffer)_store", kernel.asm["amdgcn"])[0]
        loads = re.findall(r"(?:global|buffer)_load_dword(x\d)?\s", before_stores)
        widths = [32 * int(vector[1:] or 1) for vector in loads]
    return {
        "registers": registers,
        "spills": spills,
        "conversions": _conversions(kernel.asm["ttgir"]),
        "loads of 4 bytes": widths.count(32),
        "loads of 8 or 16 bytes": sum(width > 32 for width in widths),
    }


def _conversions(ttgir: str) -> int:
    """Counts the conversions that move elements between threads, up to the step-by-step scan.

    With one axis longer than 1, the order of the axes changes no element's thread.
    """
    layouts = {
        name: re.sub(r", order = \[.*?\]", "", text) for name, text in re.findall(r"^(#\w+) = (.*)$", ttgir, re.MULTILINE)
    }
    conversion = r"ttg\.convert_layout .*: tensor<([\dx]+)x[^#]*(#\w+)> -> tensor<[^#]*(#\w+)>"
    return sum(
        layouts[before] != layouts[after] or sum(size != "1" for size in sizes.split("x")) > 1
        for sizes, before, after in re.findall(conversion, ttgir.split("scf.if")[0])
    )


if __name__ == "__main__":
    print(json.dumps(_compile_all(sys.argv[1])))
