"""The linear scan in ONNX: the operator ``Scan`` around one step of the recurrence.

- ``linear_scan``: ``y[t] = x[t] + decay[t] * y[t + 1]``.
- ``linear_scan_transposed``: ``y[t] = x[t] + decay[t - 1] * y[t - 1]``.

onnxscript translates the source of a function, annotations included, so the function cannot have direction and dtype as arguments. Each
pair of a direction and a dtype has its own function, and each direction has a factory of such functions.
"""

# mypy: disable-error-code="type-var, arg-type, no-untyped-def"

from typing import Any, Callable, Dict

import onnx_ir as ir
import torch
from onnxscript import DOUBLE, FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import OnnxFunction

import a2c_compiled.ops  # noqa: F401 - registers the operators


def _make_reverse_scan(real: Any) -> OnnxFunction:
    """Makes ``linear_scan`` for data that is reversed in time. The recurrence is then ``y[t] = x[t] + decay[t] * y[t - 1]``."""

    @script(default_opset=op)
    def linear_scan_turned_round(x: real[...], decay: real[...]) -> real[...]:
        @graph()
        def step(previous: real[...], x_t: real[...], decay_t: real[...]):
            zero = op.CastLike(0.0, x_t)
            # A zero decay cuts the recurrence. Where selects 0, since the product 0 * NaN would be NaN.
            y = x_t + op.Where(decay_t == zero, zero, decay_t * previous)
            y_out = op.Identity(y)
            return y, y_out

        nothing = op.Expand(op.CastLike(0.0, x), op.Shape(x, start=1))
        _, y = op.Scan(nothing, x, decay, body=step, num_scan_inputs=2)
        return y

    return linear_scan_turned_round


def _make_transposed_scan(real: Any) -> OnnxFunction:
    """Makes ``linear_scan_transposed``: ``y[t] = x[t] + decay[t - 1] * y[t - 1]``."""

    @script(default_opset=op)
    def linear_scan_transposed_time_first(x: real[...], decay: real[...]) -> real[...]:
        @graph()
        def step(passed: real[...], x_t: real[...], decay_t: real[...]):
            zero = op.CastLike(0.0, x_t)
            y = x_t + passed
            passed_out = op.Where(decay_t == zero, zero, decay_t * y)
            return passed_out, y

        nothing = op.Expand(op.CastLike(0.0, x), op.Shape(x, start=1))
        _, y = op.Scan(nothing, x, decay, body=step, num_scan_inputs=2)
        return y

    return linear_scan_transposed_time_first


_SCANS = {
    (dtype, reverse): make(real)
    for dtype, real in ((ir.DataType.FLOAT, FLOAT), (ir.DataType.DOUBLE, DOUBLE))
    for reverse, make in ((True, _make_reverse_scan), (False, _make_transposed_scan))
}


def linear_scan(x: Any, decay: Any, dim: int, reverse: bool = True) -> Any:
    """Translates ``a2c_compiled::linear_scan``. ``x`` and ``decay`` are values of the graph that onnxscript builds."""
    rank = len(x.shape)
    is_half = x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    dtype = ir.DataType.FLOAT if is_half else x.dtype
    x_, decay_ = (op.Cast(x, to=dtype), op.Cast(decay, to=dtype)) if is_half else (x, decay)
    # Scan runs along the first dimension. Along another one of length 0, onnxruntime 1.31 crashes the process.
    axis = dim % rank
    time_first = [axis, *(i for i in range(rank) if i != axis)]
    if axis != 0:
        x_, decay_ = op.Transpose(x_, perm=time_first), op.Transpose(decay_, perm=time_first)
    if reverse:
        x_, decay_ = _reversed(x_), _reversed(decay_)
    y = _SCANS[dtype, reverse](x_, decay_)
    if reverse:
        y = _reversed(y)
    if axis != 0:
        y = op.Transpose(y, perm=[time_first.index(i) for i in range(rank)])
    return op.CastLike(y, x) if is_half else y


def _reversed(x: Any) -> Any:
    """Reverses ``x`` along its first dimension.

    Used before and after Scan, because few runtimes support the direction attributes of Scan itself.
    """
    # From the last entry to the first: Slice stops before its end, and an end of -(2**63) lies before the first entry.
    starts, ends, axes, steps = ([-1], [-(2**63)], [0], [-1])
    return op.Slice(x, *(op.Constant(value_ints=numbers) for numbers in (starts, ends, axes, steps)))


def linear_scan_transposed(x: Any, decay: Any, dim: int) -> Any:
    """Translates ``a2c_compiled::linear_scan_transposed``."""
    return linear_scan(x, decay, dim, reverse=False)


SCANS: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
