"""Translations of ATen operators to ONNX that also work in float64.

torch's own translations round every Python number to float32, whatever the dtype of the tensors. Their ``log(sigmoid(x))`` is infinite
where ``x < -104``. For ``Atanh``, onnxruntime has no float64 kernel.
"""

from typing import Any, Callable, Dict, Optional

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # Any, because the stubs of onnxscript expect protobuf's types


def constant(number: Any, dtype: ir.DataType) -> Any:
    """Returns a Python number as a constant of the graph, in ``dtype`` and without a detour through float32."""
    return op.Constant(value=ir.tensor(np.asarray(number, dtype=dtype.numpy())))


def _scalar_tensor(
    s: Any, dtype: int = int(ir.DataType.FLOAT), layout: str = "", device: str = "", pin_memory: bool = False
) -> Any:
    """Translates ``aten::scalar_tensor``, which torch inserts for every Python number in arithmetic."""
    dtype = int(ir.DataType.FLOAT) if dtype == -1 else dtype  # -1 means that the caller gave no dtype
    return op.Cast(s, to=dtype) if isinstance(s, ir.Value) else constant(s, ir.DataType(dtype))


def _full(size: Any, fill_value: Any, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    """Translates ``aten::full``."""
    value = _scalar_tensor(fill_value, dtype)
    return op.Expand(value, op.Cast(size, to=ir.DataType.INT64))


def _clamp(self: Any, min: Optional[float] = None, max: Optional[float] = None) -> Any:
    """Translates ``aten::clamp``."""
    return op.Clip(self, *(None if bound is None else constant(bound, self.dtype) for bound in (min, max)))


def _clamp_min(self: Any, min_: float) -> Any:
    """Translates ``aten::clamp_min``."""
    return _clamp(self, min_, None)


def _clamp_max(self: Any, max_: float) -> Any:
    """Translates ``aten::clamp_max``."""
    return _clamp(self, None, max_)


def _add(self: Any, other: Any, alpha: float = 1.0) -> Any:
    """Translates ``aten::add.Tensor``, also for booleans."""
    if self.dtype == ir.DataType.BOOL:
        return op.Or(self, other)
    return op.Add(self, other if alpha == 1 else op.Mul(other, constant(alpha, other.dtype)))


def _sub(self: Any, other: Any, alpha: float = 1.0) -> Any:
    """Translates ``aten::sub.Tensor``."""
    return op.Sub(self, other if alpha == 1 else op.Mul(other, constant(alpha, other.dtype)))


def _addcmul(self: Any, tensor1: Any, tensor2: Any, value: float = 1.0) -> Any:
    """Translates ``aten::addcmul``, rounding in torch's order."""
    return op.Add(self, op.Mul(op.Mul(constant(value, self.dtype), tensor1), tensor2))


def _addcdiv(self: Any, tensor1: Any, tensor2: Any, value: float = 1.0) -> Any:
    """Translates ``aten::addcdiv``, rounding in torch's order."""
    return op.Add(self, op.Div(op.Mul(constant(value, self.dtype), tensor1), tensor2))


def _pow_of_number(self: float, exponent: Any) -> Any:
    """Translates ``aten::pow.Scalar``. The power of a float with integer exponents is float32."""
    keeps_dtype = exponent.dtype.is_floating_point() or isinstance(self, int)
    dtype = exponent.dtype if keeps_dtype else ir.DataType.FLOAT
    return op.Pow(constant(self, dtype), op.Cast(exponent, to=dtype))


def _atanh(self: Any) -> Any:
    """Translates ``aten::atanh``. In float64: ``0.5 * log((1 + x) / (1 - x))``, since onnxruntime has no float64 kernel of ``Atanh``."""
    if self.dtype != ir.DataType.DOUBLE:
        return op.Atanh(self)
    one = constant(1.0, self.dtype)
    return op.Mul(constant(0.5, self.dtype), op.Log(op.Div(op.Add(one, self), op.Sub(one, self))))


def _log_sigmoid(self: Any) -> Any:
    """Translates ``aten::log_sigmoid`` as ``min(x, 0) - log(1 + exp(-|x|))``. torch's ``log(sigmoid(x))`` is -inf where ``x < -104``."""
    one, zero = constant(1.0, self.dtype), constant(0.0, self.dtype)
    return op.Sub(op.Min(self, zero), op.Log(op.Add(one, op.Exp(op.Neg(op.Abs(self))))))


TRANSLATIONS: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scalar_tensor.default: _scalar_tensor,
    torch.ops.aten.full.default: _full,
    torch.ops.aten.clamp.default: _clamp,
    torch.ops.aten.clamp_min.default: _clamp_min,
    torch.ops.aten.clamp_max.default: _clamp_max,
    torch.ops.aten.add.Tensor: _add,
    torch.ops.aten.sub.Tensor: _sub,
    torch.ops.aten.addcmul.default: _addcmul,
    torch.ops.aten.addcdiv.default: _addcdiv,
    torch.ops.aten.pow.Scalar: _pow_of_number,
    torch.ops.aten.atanh.default: _atanh,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
}
