"""The CPU backend: calls the C++ kernels, if they were built at installation.

A form is a recurrence along time with its inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`.
"""

import functools
import importlib
import warnings
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import parallel_for
from a2c_compiled.kernels.scan_forms import Form

MAX_DIMENSIONS = 16  # kMaxDims of cpu/scan.h
# Results of at least this many elements get new pages of memory at every call, unless the allocator keeps freed memory. `call` leaves
# larger results to `run`, which makes the allocator keep freed memory.
_LARGE = 1 << 18


def _built_extension() -> Optional[Any]:
    """Returns the extension module with the widest vectors that this processor has, or None if no build can be imported."""
    builds = {"AVX512": ("_cpu_avx512", "_cpu_avx2"), "AVX2": ("_cpu_avx2",)}
    for name in (*builds.get(torch.backends.cpu.get_cpu_capability(), ()), "_cpu"):
        try:
            extension = importlib.import_module(f"a2c_compiled.kernels.{name}")
        except ImportError:
            continue
        extension.use_threads(parallel_for())
        return extension
    return None


_extension = _built_extension()
# The number by which the extension identifies each form.
_FORM_NUMBERS = {name: number for number, name in enumerate(_extension.forms())} if _extension else {}
# The number by which it identifies the dtype of values and outputs.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def is_available() -> bool:
    """Returns whether a C++ extension was built and can be imported."""
    return _extension is not None


def build_in_use() -> Optional[str]:
    """Returns the name of the C++ build in use, such as ``"_cpu_avx2"``, or None if scans on the CPU run in plain torch."""
    return None if _extension is None else _extension.__name__.rpartition(".")[2]


@functools.cache
def warn_once() -> None:
    """Warns, once per process, that scans on the CPU run in plain torch."""
    warnings.warn(
        "a2c_compiled: the C++ kernels were not built, so scans on the CPU run in plain torch, which is slower;"
        " to build them, install a C++ compiler and then a2c_compiled again, with pip's option --no-cache-dir",
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
    """Computes ``form`` with the C++ kernel and returns its outputs. Shapes and dtypes: see :class:`a2c_compiled.kernels.scan_forms.Form`.

    The kernel computes half-precision data in float32. The threads of torch, see ``torch.set_num_threads``, share a large scan.

    Args:
        form: the recurrence to compute, one of :data:`~a2c_compiled.kernels.scan_forms.FORMS`.
        coefficients, values, flags: CPU tensors, in the order of the form, not checked.
        dim: the dimension of time, positive or negative.
        outputs: tensors to write the results into. None allocates them.
    """
    outputs = form.empty_outputs(values, flags) if outputs is None else outputs
    if outputs[0].numel() >= _LARGE:
        keep_freed_memory()
    number, time = _FORM_NUMBERS[form.name], dim % outputs[0].dim()
    _extension.run(number, _DTYPES[outputs[0].dtype], time, *coefficients, *values, *flags, *outputs)  # type: ignore[union-attr]
    return outputs


def call(form: Form, dim: Any, cu_seqlens: Any, *inputs: Any) -> Optional[Tuple[Tensor, ...]]:
    """Checks ``inputs`` and computes ``form`` in one C++ call. Returns None if an input does not qualify.

    One C++ call takes a fraction of the time of the same checks in Python. The inputs qualify if all of this holds:

    * Values are CPU tensors of one shape, with 1 to 2^18 elements and at most 16 dimensions, of dtype float32 or float64.
    * Coefficients are numbers, zero-dimensional tensors of dtype float32 or float64, or tensors with the dtype and shape of the values.
      Flags are bool and have the shape of the values.
    * ``cu_seqlens`` is None, or a CPU tensor of dtype int32 or int64 with one dimension, and the form has a flag.
    * No tensor is an instance of a subclass, no value or coefficient is a negated view, and no gradient is needed.

    The function also returns None if no extension was built, or if this version of torch has no C interface of DLPack. Call it under a
    dispatch mode, a functorch transform or a tracer only from the kernel of an operator: these act on operators, and this function is none.

    Args:
        form: the recurrence to compute, one of :data:`~a2c_compiled.kernels.scan_forms.FORMS`.
        dim: the dimension of time, positive or negative.
        cu_seqlens: None, or the starts of packed sequences, then T: the first flag, which ends the trace, counts as True before each entry.
        inputs: coefficients, values and flags, in the order of the form.
    """
    return None if _extension is None else _extension.call(_FORM_NUMBERS[form.name], _LARGE, dim, cu_seqlens, *inputs)


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc keep up to 64 MiB of freed memory in the process, instead of returning it to the system.

    glibc raises its threshold to follow the largest block that was freed. This function frees a block of just under 32 MiB that is
    never written to. Without this, results of a few MiB return to the system at every call, and the page faults of the next call cost
    several times the scan. Scans call this function before their first large result, and training steps on a CPU when they are made. The
    function has no effect if the thresholds of glibc are set explicitly, by ``MALLOC_TRIM_THRESHOLD_`` in the environment or by
    ``mallopt``.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
