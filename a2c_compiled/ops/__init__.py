"""The operators: registration, gradients, fake tensors, vmap and the choice of a backend. No mathematics and no device code.

* :func:`linear_scan` is the differentiable primitive.
* :func:`fused_scan` makes a differentiable function of a forward and a backward form. A form is a recurrence along time with its inputs
  and outputs, see :mod:`a2c_compiled.kernels.scan_forms`.
* :func:`direct` calls the C++ kernel without an operator.

``ops/registration.py`` registers one operator per form, ``torch.ops.a2c_compiled.<name>``.
"""

from a2c_compiled.ops.eager_fast_path import direct
from a2c_compiled.ops.fused import fused_scan
from a2c_compiled.ops.linear_scan import linear_scan

__all__ = ["direct", "fused_scan", "linear_scan"]
