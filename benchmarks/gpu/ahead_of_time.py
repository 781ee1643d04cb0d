"""The Triton kernels compiled for a GPU that need not be there, and what their machine code needs."""

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
    """A kind of GPU."""

    backend: str
    architecture: Union[int, str]
    warp_size: int
    # The most that a thread can have.
    registers: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 255),
    "sm_90": Target("cuda", 90, 32, 255),
    "sm_100": Target("cuda", 100, 32, 255),
    "gfx942": Target("hip", "gfx942", 64, 256),
}


class _Driver:
    """What Triton asks its driver for before a launch."""

    def __init__(self, target: Target) -> None:
        self.target = GPUTarget(target.backend, target.architecture, target.warp_size)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(target: Target) -> None:
    """From now on, Triton compiles for ``target`` in this process. Its interpreter must be off."""
    driver.set_active(_Driver(target))


def blocks_for(target: Target, form: Form, shape: Sequence[int], dim: int, dtype: torch.dtype = torch.float32) -> Blocks:
    """How :mod:`tuning` cuts up contiguous data of ``shape``, two-dimensional, with time at ``dim`` (-1 or -2)."""
    rows, steps = (shape[-1], shape[-2]) if dim == -2 else shape
    streams = len(form.values) + len(form.outputs)
    return tuning.choose(dim == -2, 1, rows, steps, dtype.itemsize, streams, warp_size=target.warp_size)


def compiled(
    form: Form,
    shape: Sequence[int],
    dim: int,
    dtype: torch.dtype,
    blocks: Blocks,
    per_step: bool = False,
    shared: bool = True,
) -> List[Any]:
    """The kernel of each launch of ``form``.

    Args:
        per_step: coefficients have a number for each step.
        shared: all operands have the same strides.
    """

    def empty(dtype: torch.dtype) -> torch.Tensor:
        """No memory is touched: its size and strides are all that counts."""
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
    assert prepared is not None, "contiguous outputs have strides that the kernel takes"
    launches, tensors = prepared
    return [
        triton_scan.scan_kernel.warmup(*tensors, *launch.arguments, grid=launch.grid, **launch.options) for launch in launches
    ]


def registers_and_spills(kernel: Any) -> Tuple[int, int]:
    """Registers of a thread, and the bytes of its stack on NVIDIA's GPUs, the registers spilt on AMD's."""
    if "cubin" in kernel.asm:
        usage = nvidia_tool("cuobjdump", "--dump-resource-usage", kernel)
        patterns = (r"REG:(\d+)", r"STACK:(\d+)")
    else:
        usage = kernel.asm["amdgcn"]
        patterns = (r"\.vgpr_count:\s+(\d+)", r"\.vgpr_spill_count:\s+(\d+)")
    registers, spills = (int(found[1]) if (found := re.search(pattern, usage)) else -1 for pattern in patterns)
    if min(registers, spills) < 0:
        raise RuntimeError(f"the compiler's report has no {patterns[0]} and {patterns[1]}: {usage[-300:]}")
    return registers, spills


def nvidia_tool(*command: Any) -> str:
    """What a tool that comes with Triton prints: its name, options, and last the kernel whose machine code it reads."""
    *name_and_options, kernel = command
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name_and_options[0]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        line = [str(tool), *name_and_options[1:], file.name]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout
