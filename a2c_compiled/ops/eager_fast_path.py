"""The kernel without everything around it, where nothing around it is asked for."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import nothing_watches
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.kernels.scan_forms import Form


def direct(form: Form, dim: Any, *inputs: Any) -> Optional[Tuple[Tensor, ...]]:
    """The outputs of ``form`` from its unchecked ``inputs``, or None where checks, gradients, transforms or another device are wanted.

    At a few hundred steps the checks, conversions and dispatching in Python take several times as long as the scan. None says nothing
    about why: the long way then finds out, and is to give the same result wherever this gives one.
    """
    if torch.compiler.is_dynamo_compiling() or not nothing_watches():
        return None
    return cpu_scan.call(form, dim, *inputs)
