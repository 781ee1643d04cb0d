"""The eager fast path: a call of the C++ kernel that skips the checks in Python, the operator and autograd."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import dispatch_is_plain
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.kernels.scan_forms import Form, masked


def direct(form: Form, dim: Any, *inputs: Any, mask: Any = None, cu_seqlens: Any = None) -> Optional[Tuple[Tensor, ...]]:
    """Computes ``form`` with the C++ kernel, or returns None if the inputs do not qualify.

    At a few hundred steps, the checks, conversions and dispatch in Python take several times as long as the scan. The inputs need
    no check before the call. If the result is None, the caller must run the checks and the operator, which compute the outputs or raise an
    error that says what is wrong. The result is None in these cases:

    * a shape, dtype or device does not fit, or there are more than 16 dimensions, no elements, or more than 2^18 elements;
    * a gradient is needed;
    * a dispatch mode, a functorch transform or a tracer is active;
    * the C++ kernels were not built, or this version of torch has no C interface of DLPack, through which the kernels read tensors.

    Args:
        form: the recurrence to compute, one of :data:`~a2c_compiled.kernels.scan_forms.FORMS`.
        dim: the dimension of time, an integer.
        inputs: coefficients, values and flags, in the order of the form. Values: ``[*B, T, *F]``, float32 or float64. Coefficients:
            numbers, zero-dimensional tensors, float32 or float64, or tensors with the dtype and shape of the values. Flags: the
            values' shape, bool.
        mask: another flag, see :func:`a2c_compiled.kernels.scan_forms.masked`, or None.
        cu_seqlens: the starts of packed sequences, then T, or None. The first flag is then that which ends the trace.

    Returns:
        The outputs, each with the shape and dtype of the values, or None.
    """
    if torch.compiler.is_dynamo_compiling() or not dispatch_is_plain():
        return None
    if mask is not None:
        form, inputs = masked(form), (*inputs, mask)
    return cpu_scan.call(form, dim, cu_seqlens, *inputs)
