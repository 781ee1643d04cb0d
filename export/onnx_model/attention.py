"""Translation of attention to ONNX, in operators that every opset from 18 on has.

torch's own translations differ from eager mode. Up to opset 22, a query whose keys are all masked attends to all keys, and with a mask, NaN
becomes 0. From opset 23 on, they use the operator ``Attention``, whose mask onnxruntime does not broadcast along the queries.
"""

import math
from typing import Any, Callable, Dict, Optional

import onnx_ir as ir
import torch
from onnxscript import opset18

from a2c_compiled.export.onnx_model.float64 import constant
from a2c_compiled.export.onnx_model.random_numbers import dropout

op: Any = opset18  # Any, because the stubs of onnxscript expect protobuf's types


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Optional[Any] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Any:
    """Translates ``aten::scaled_dot_product_attention``. The result of a query whose keys are all masked is 0, as in eager mode."""
    dtype, rank = query.dtype, len(key.shape)
    if enable_gqa:
        key, value = (_repeated(tensor, query) for tensor in (key, value))
    scores = op.MatMul(op.Mul(query, _factor(query, scale)), op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2]))
    nothing, zero = constant(-math.inf, dtype), constant(0.0, dtype)
    if is_causal:
        queries, keys = (op.Range(0, op.Squeeze(op.Shape(tensor, start=rank - 2, end=rank - 1)), 1) for tensor in (query, key))
        attn_mask = op.GreaterOrEqual(op.Unsqueeze(queries, [1]), keys)
    elif attn_mask is None:
        return op.MatMul(dropout(op.Softmax(scores, axis=-1), dropout_p, dtype), value)
    bias = op.Where(attn_mask, zero, nothing) if attn_mask.dtype in (None, ir.DataType.BOOL) else attn_mask
    attends = op.Greater(op.ReduceMax(bias, [-1], keepdims=1), nothing)
    weights = op.Where(attends, op.Softmax(op.Add(scores, bias), axis=-1), zero)
    return op.MatMul(dropout(weights, dropout_p, dtype), value)


def _factor(query: Any, scale: Optional[float]) -> Any:
    """Returns ``scale``, or its default: one over the square root of the size of a query."""
    size = query.shape[-1]
    if scale is None and not isinstance(size, int):
        return op.Reciprocal(op.Sqrt(op.CastLike(op.Shape(query, start=len(query.shape) - 1), query)))
    number = 1 / math.sqrt(size) if scale is None else scale
    # onnxruntime fuses a scalar factor into MatMul and rounds it to float32. For float64, the factor is therefore a vector.
    return constant([number] * size if query.dtype == ir.DataType.DOUBLE and isinstance(size, int) else number, query.dtype)


def _repeated(tensor: Any, query: Any) -> Any:
    """Repeats each head of keys or values, so that there are as many as in ``query``. Heads are the third dimension from the end."""
    heads, times = tensor.shape[-3], query.shape[-3] // tensor.shape[-3]
    return op.Gather(
        tensor, op.Constant(value_ints=[head for head in range(heads) for _ in range(times)]), axis=len(tensor.shape) - 3
    )


ATTENTION: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
