"""The fused scans in C++, on the CPU."""

import functools
import importlib
import warnings
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen, working_dtype
from a2c_compiled.kernels.scan_forms import Form

MOST_DIMENSIONS = 16
# From this many elements on, results are new pages of memory at every call, unless the allocator keeps what was freed.
_LARGE = 1 << 18


def _built_extension() -> Optional[Any]:
    """The build for this processor, if any."""
    builds = ("_cpu_avx2", "_cpu") if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else ("_cpu",)
    for name in builds:
        try:
            return importlib.import_module(f"a2c_compiled.kernels.{name}")
        except ImportError:
            continue
    return None


_extension = _built_extension()
_NUMBERS = {name: number for number, name in enumerate(_extension.forms())} if _extension else {}


def is_available() -> bool:
    """Whether there was a compiler at installation."""
    return _extension is not None


@functools.cache
def warn_once() -> None:
    """That scans on the CPU are slower than they need to be."""
    warnings.warn(
        "a2c_compiled: the C++ kernels were not built (no compiler at installation?); scans on the CPU run in plain torch, slower",
        RuntimeWarning,
        stacklevel=2,
    )


def run(
    form: Form,
    coefficients: Sequence[Tensor],
    values: Sequence[Tensor],
    flags: Sequence[Tensor],
    dim: int,
    outputs: Optional[Tuple[Tensor, ...]] = None,
) -> Tuple[Tensor, ...]:
    """The outputs of ``form``, whose comment says what shapes and dtypes are; coefficients are in the dtype that is computed in.

    Written into ``outputs``, where they are given.
    """
    outputs = results = form.empty_outputs(values, flags) if outputs is None else outputs
    dtype = working_dtype(outputs[0])
    half = dtype != outputs[0].dtype
    if half:
        values = [widen(value) for value in values]
        results = tuple([torch.empty_like(output, dtype=dtype) for output in outputs])
    if outputs[0].numel() >= _LARGE:
        keep_freed_memory()
    number, time = _NUMBERS[form.name], dim % outputs[0].dim()
    _extension.run(number, dtype is torch.float64, time, *coefficients, *values, *flags, *results)  # type: ignore[union-attr]
    if half:
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)
    return outputs


def call(form: Form, dim: Any, *inputs: Any) -> Optional[Tuple[Tensor, ...]]:
    """The outputs of ``form``, or None unless every input is what :func:`run` asks for, and small, and asks for no gradient.

    Checked and computed in one step, in a fraction of the time that each takes alone in Python. Coefficients may be numbers. Not for
    when an operator would be seen, or code is traced.
    """
    return None if _extension is None else _extension.call(_NUMBERS[form.name], _LARGE, dim, *inputs)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB of what is freed, by freeing a block of just under 32 MiB that is never touched.

    Its threshold follows the largest block that was freed. Without this, results of a few MiB go back to the system at every call,
    and the page faults of the next ones cost several times the scan. Scans call this themselves before their first large result. It
    changes nothing where glibc was told its thresholds: ``MALLOC_TRIM_THRESHOLD_`` in the environment, or ``mallopt``.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
