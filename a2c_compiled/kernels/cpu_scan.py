"""The linear recurrence in C++, on the CPU; in plain torch where the extension was not built."""

import functools
import warnings

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.kernels import torch_scan

try:
    from a2c_compiled.kernels import _cpu  # type: ignore[attr-defined]
except ImportError:
    _cpu = None


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """As :func:`a2c_compiled.kernels.torch_scan.linear_scan`, for tensors on the CPU."""
    if _cpu is None:
        _warn_once()
        return torch_scan.linear_scan(x, decay, dim, reverse)
    x_, decay_ = widen(x), widen(decay)
    y = torch.empty_like(x_)
    _cpu.linear_scan(
        x.shape,
        dim % x.dim(),
        reverse,
        x_.dtype == torch.float64,
        x_.data_ptr(),
        x_.stride(),
        decay_.data_ptr(),
        decay_.stride(),
        y.data_ptr(),
        y.stride(),
    )
    return y.to(x.dtype)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "a2c_compiled: the C++ kernels were not built (no compiler at installation?); scans on the CPU run in plain torch, slower",
        RuntimeWarning,
        stacklevel=2,
    )
