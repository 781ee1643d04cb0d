"""Python's numbers in ONNX at the precision of the tensors that they meet: the exporter's own translations round each to float32."""

from typing import Any, Optional

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op


def _constant(number: Any, dtype: ir.DataType) -> Any:
    return op.Constant(value=ir.tensor(np.asarray(number, dtype=dtype.numpy())))


def _scalar_tensor(
    s: Any, dtype: int = int(ir.DataType.FLOAT), layout: str = "", device: str = "", pin_memory: bool = False
) -> Any:
    """``aten::scalar_tensor``, which the exporter makes of every number in arithmetic."""
    dtype = int(ir.DataType.FLOAT) if dtype == -1 else dtype
    return op.Cast(s, to=dtype) if isinstance(s, ir.Value) else _constant(s, ir.DataType(dtype))


def _clamp(self: Any, min: Optional[float] = None, max: Optional[float] = None) -> Any:  # noqa: A002 - torch's names
    """``aten::clamp``."""
    return op.Clip(self, *(None if bound is None else _constant(bound, self.dtype) for bound in (min, max)))


def _clamp_min(self: Any, min_: float) -> Any:
    """``aten::clamp_min``."""
    return _clamp(self, min_, None)


def _clamp_max(self: Any, max_: float) -> Any:
    """``aten::clamp_max``."""
    return _clamp(self, None, max_)


TRANSLATIONS = {
    torch.ops.aten.scalar_tensor.default: _scalar_tensor,
    torch.ops.aten.clamp.default: _clamp,
    torch.ops.aten.clamp_min.default: _clamp_min,
    torch.ops.aten.clamp_max.default: _clamp_max,
}
