"""Translations to ONNX of operators that draw random numbers, where torch's own translations draw from another distribution.

- ``Bernoulli`` of onnxruntime draws 1 with probability 1 - p.
- ``normal`` with a tensor of standard deviations draws one number for all elements.
- ``multinomial`` without replacement draws with replacement.
"""

from typing import Any, Callable, Dict

import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # Any, because the stubs of onnxscript expect protobuf's types


def _uniform_like(x: Any) -> Any:
    """Draws a number of [0, 1) for each element of ``x``: float64 for float64, else float32."""
    dtype = x.dtype if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    return op.RandomUniformLike(x, dtype=int(dtype))


def _bernoulli(self: Any) -> Any:
    """Translates ``aten::bernoulli``."""
    uniform = _uniform_like(self)
    return op.CastLike(op.Less(uniform, op.CastLike(self, uniform)), self)


def _bernoulli_of(self: Any, p: Any) -> Any:
    """Translates ``aten::bernoulli.Tensor``: probabilities ``p``, in the dtype of ``self``, of which only the shape counts otherwise."""
    return op.CastLike(_bernoulli(op.Expand(p, op.Shape(self))), self)


def _normal(mean: float, std: Any) -> Any:
    """Translates ``aten::normal.float_Tensor``."""
    draw = op.CastLike(op.RandomNormalLike(std, dtype=int(ir.DataType.FLOAT)), std)
    return op.Add(op.CastLike(op.Constant(value_float=mean), std), op.Mul(std, draw))


def _multinomial(self: Any, num_samples: int, replacement: bool = False) -> Any:
    """Translates ``aten::multinomial``. Without replacement: the largest of ``p / e``, with ``e`` from an exponential distribution."""
    if replacement or num_samples == 1:
        rows = op.Log(self if len(self.shape) == 2 else op.Unsqueeze(self, [0]))
        chosen = op.Multinomial(rows, dtype=int(ir.DataType.INT64), sample_size=num_samples)
        return chosen if len(self.shape) == 2 else op.Squeeze(chosen, [0])
    exponential = op.Neg(op.Log(_uniform_like(self)))
    return op.TopK(op.Div(op.CastLike(self, exponential), exponential), op.Constant(value_ints=[num_samples]))[1]


RANDOM: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.bernoulli.default: _bernoulli,
    torch.ops.aten.bernoulli.Tensor: _bernoulli_of,
    torch.ops.aten.normal.float_Tensor: _normal,
    torch.ops.aten.multinomial.default: _multinomial,
}
