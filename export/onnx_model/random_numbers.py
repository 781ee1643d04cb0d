"""Translations to ONNX of operators that draw random numbers, where torch's translation or onnxruntime draws from another distribution.

- onnxruntime removes ``Dropout`` between two operators, also in training mode.
- onnxruntime's ``Bernoulli`` draws 1 with probability 1 - p.
- torch's translation of ``normal`` with a tensor of standard deviations draws one number for all elements.
- torch's translation of ``multinomial(replacement=False)`` draws with replacement.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import onnx_ir as ir
import torch
from onnxscript import opset18

from a2c_compiled.export.onnx_model.float64 import constant

op: Any = opset18  # Any, because the stubs of onnxscript expect protobuf's types


def _uniform_like(x: Any) -> Any:
    """Draws a float32 number of [0, 1) for each element of ``x``."""
    return op.RandomUniformLike(x, dtype=int(ir.DataType.FLOAT))


def dropout(input: Any, p: float, dtype: ir.DataType) -> Any:
    """Sets entries to zero with probability ``p`` and divides the others by ``1 - p``. Shape and dtype: those of ``input``, ``dtype``."""
    return _native_dropout(input, p, True, dtype)[0] if p else input


def _native_dropout(input: Any, p: float, train: bool, dtype: Optional[ir.DataType] = None) -> Tuple[Any, Any]:
    """Translates ``aten::native_dropout``: the result, and which entries it keeps."""
    keeps = op.GreaterOrEqual(_uniform_like(input), constant(p if train else 0.0, ir.DataType.FLOAT))
    factor = constant(1 / (1 - p) if train and p < 1 else 1.0, dtype or input.dtype)
    return op.Mul(input, op.Mul(op.CastLike(keeps, input), factor)), keeps


def _bernoulli(self: Any) -> Any:
    """Translates ``aten::bernoulli``."""
    return op.CastLike(op.Less(_uniform_like(self), op.Cast(self, to=int(ir.DataType.FLOAT))), self)


def _bernoulli_of(self: Any, p: Any) -> Any:
    """Translates ``aten::bernoulli.Tensor``: draws with probabilities ``p``. ``self`` gives only shape and dtype of the result."""
    return op.CastLike(_bernoulli(op.Expand(p, op.Shape(self))), self)


def _normal(mean: float, std: Any) -> Any:
    """Translates ``aten::normal.float_Tensor``."""
    draw = op.CastLike(op.RandomNormalLike(std, dtype=int(ir.DataType.FLOAT)), std)
    return op.Add(constant(mean, std.dtype), op.Mul(std, draw))


def _multinomial(self: Any, num_samples: int, replacement: bool = False) -> Any:
    """Translates ``aten::multinomial``.

    Without replacement, the result is the indices of the ``num_samples`` largest ``p / e``, with ``e`` from an exponential distribution.
    """
    if replacement or num_samples == 1:
        rows = op.Log(self if len(self.shape) == 2 else op.Unsqueeze(self, [0]))
        chosen = op.Multinomial(rows, dtype=int(ir.DataType.INT64), sample_size=num_samples)
        return chosen if len(self.shape) == 2 else op.Squeeze(chosen, [0])
    exponential = op.Neg(op.Log(_uniform_like(self)))
    return op.TopK(op.Div(op.Cast(self, to=int(ir.DataType.FLOAT)), exponential), op.Constant(value_ints=[num_samples]))[1]


RANDOM: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.native_dropout.default: _native_dropout,
    torch.ops.aten.bernoulli.default: _bernoulli,
    torch.ops.aten.bernoulli.Tensor: _bernoulli_of,
    torch.ops.aten.normal.float_Tensor: _normal,
    torch.ops.aten.multinomial.default: _multinomial,
}
