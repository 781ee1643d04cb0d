"""Compiles the Triton kernels for GPUs that need not be present, and reads registers and spills from the machine code.

A form is a recurrence along time with its inputs and outputs (its operands), see :mod:`a2c_compiled.kernels.scan_forms`.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, List, NamedTuple, Sequence, Tuple, Union

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.runtime import driver  # type: ignore[import-untyped]

from a2c_compiled._precision import working_dtype
from a2c_compiled.kernels import triton_scan
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.kernels.triton import tuning
from a2c_compiled.kernels.triton.tuning import Blocks


class Target(NamedTuple):
    """A GPU architecture.

    Attributes:
        backend: Triton's backend, "cuda" or "hip".
        architecture: Triton's name of the architecture.
        warp_size: threads per warp.
        registers: largest number of registers per thread.
    """

    backend: str
    architecture: Union[int, str]
    warp_size: int
    registers: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 255),
    "sm_90": Target("cuda", 90, 32, 255),
    "sm_100": Target("cuda", 100, 32, 255),
    "gfx942": Target("hip", "gfx942", 64, 256),
}


class _Driver:
    """The part of a Triton driver that Triton calls before a launch, for a GPU that is not present."""

    def __init__(self, target: Target) -> None:
        self.target = GPUTarget(target.backend, target.architecture, target.warp_size)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(target: Target) -> None:
    """Makes Triton compile for ``target`` in the rest of this process. Triton's interpreter must be off."""
    driver.set_active(_Driver(target))


def blocks_for(target: Target, form: Form, shape: Sequence[int], dim: int, dtype: torch.dtype = torch.float32) -> Blocks:
    """Returns the tile sizes that :mod:`tuning` chooses for contiguous data.

    Args:
        target: the GPU architecture.
        form: the recurrence that the kernel computes.
        shape: shape of the data, two-dimensional.
        dim: dimension of time, -1 or -2.
        dtype: dtype of the values.
    """
    rows, steps = (shape[-1], shape[-2]) if dim == -2 else shape
    streams = len(form.values) + len(form.outputs)
    return tuning.choose_blocks(dim == -2, 1, rows, steps, dtype.itemsize, streams, warp_size=target.warp_size)


def compiled(
    form: Form,
    shape: Sequence[int],
    dim: int,
    dtype: torch.dtype,
    blocks: Blocks,
    per_step: bool = False,
    shared: bool = True,
) -> List[Any]:
    """Returns the compiled kernel of each launch of ``form``.

    Args:
        form: the recurrence that the kernel computes.
        shape: shape of the operands.
        dim: dimension of time.
        dtype: dtype of the values.
        blocks: tile sizes.
        per_step: whether the coefficients are tensors of ``shape``; otherwise they are zero-dimensional.
        shared: whether all values have equal strides; otherwise the strides of the first one differ.
    """

    def empty(dtype: torch.dtype) -> torch.Tensor:
        """Returns an operand. Only its shape, strides and dtype matter; no kernel runs, so its memory is never read."""
        return torch.empty(shape, dtype=dtype)

    wide = working_dtype(torch.empty(0, dtype=dtype))
    coefficients = [empty(wide) if per_step else torch.tensor(0.9, dtype=wide) for _ in form.coefficients]
    values = [empty(dtype) for _ in form.values]
    if not shared:
        values[0] = torch.empty((*shape[:-1], shape[-1] + 1), dtype=dtype)[..., :-1]
    flags = [empty(torch.bool) for _ in form.flags]
    outputs = form.empty_outputs(values, flags)
    with tuning.forced(blocks):
        prepared = triton_scan.prepare(form, coefficients, values, flags, outputs, dim)
    assert prepared is not None, f"outputs: expected strides that the kernel supports, got {[x.stride() for x in outputs]}"
    launches, tensors = prepared
    return [
        triton_scan.scan_kernel.warmup(*tensors, *launch.arguments, grid=launch.grid, **launch.options) for launch in launches
    ]


def registers_and_spills(kernel: Any) -> Tuple[int, int]:
    """Returns the registers per thread, and the spills: bytes of stack on NVIDIA GPUs, number of spilled registers on AMD GPUs.

    Raises:
        RuntimeError: the compiler's report does not state both numbers.
    """
    if "cubin" in kernel.asm:
        usage = nvidia_tool("cuobjdump", "--dump-resource-usage", kernel)
        patterns = (r"REG:(\d+)", r"STACK:(\d+)")
    else:
        usage = kernel.asm["amdgcn"]
        patterns = (r"\.vgpr_count:\s+(\d+)", r"\.vgpr_spill_count:\s+(\d+)")
    registers, spills = (re.search(pattern, usage) for pattern in patterns)
    if registers is None or spills is None:
        raise RuntimeError(f"compiler report: expected {patterns[0]} and {patterns[1]}, got {usage[-300:]}")
    return int(registers[1]), int(spills[1])


def nvidia_tool(*command: Any) -> str:
    """Runs an NVIDIA tool that Triton ships, and returns its output.

    Args:
        command: name of the tool, its options, and last the compiled kernel whose machine code it reads.
    """
    *name_and_options, kernel = command
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name_and_options[0]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        line = [str(tool), *name_and_options[1:], file.name]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout
