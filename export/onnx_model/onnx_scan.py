"""The primitive in ONNX: the operator ``Scan`` around one step of the recurrence.

onnxscript reads the source of the functions that it translates, annotations included, and keeps none of Python around them:
hence one function per direction and dtype, made by one factory each.
"""

# mypy: disable-error-code="type-var, arg-type, no-untyped-def"

from typing import Any, Callable, Dict

import onnx_ir as ir
import torch
from onnxscript import DOUBLE, FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import OnnxFunction

import a2c_compiled.ops  # noqa: F401 - registers the operators


def _towards_the_start(real: Any) -> OnnxFunction:
    """Of data that has been turned round in time."""

    @script(default_opset=op)
    def linear_scan_turned_round(x: real[...], decay: real[...]) -> real[...]:
        @graph()
        def step(previous: real[...], x_t: real[...], decay_t: real[...]):
            zero = op.CastLike(0.0, x_t)
            # A zero decay cuts: it is selected, since a product would let NaN pass.
            y = x_t + op.Where(decay_t == zero, zero, decay_t * previous)
            y_out = op.Identity(y)
            return y, y_out

        nothing = op.Expand(op.CastLike(0.0, x), op.Shape(x, start=1))
        _, y = op.Scan(nothing, x, decay, body=step, num_scan_inputs=2)
        return y

    return linear_scan_turned_round


def _towards_the_end(real: Any) -> OnnxFunction:
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
    for reverse, make in ((True, _towards_the_start), (False, _towards_the_end))
}


def linear_scan(x: Any, decay: Any, dim: int, reverse: bool = True) -> Any:
    """Translate ``a2c_compiled::linear_scan``; ``x`` and ``decay`` are values of the graph being built."""
    rank = len(x.shape)
    half = x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    dtype = ir.DataType.FLOAT if half else x.dtype
    x_, decay_ = (op.Cast(x, to=dtype), op.Cast(decay, to=dtype)) if half else (x, decay)
    # Scan runs along the first dimension: along another, onnxruntime 1.31 ends the process where that has length 0.
    axis = dim % rank
    time_first = [axis, *(i for i in range(rank) if i != axis)]
    if axis != 0:
        x_, decay_ = op.Transpose(x_, perm=time_first), op.Transpose(decay_, perm=time_first)
    if reverse:
        x_, decay_ = _turned_round(x_), _turned_round(decay_)
    y = _SCANS[dtype, reverse](x_, decay_)
    if reverse:
        y = _turned_round(y)
    if axis != 0:
        y = op.Transpose(y, perm=[time_first.index(i) for i in range(rank)])
    return op.CastLike(y, x) if half else y


def _turned_round(x: Any) -> Any:
    """In front of Scan and behind it: the directions that Scan itself may take are known to few runtimes."""
    first, before_all, time, back = ([-1], [-(2**63)], [0], [-1])
    return op.Slice(x, *(op.Constant(value_ints=numbers) for numbers in (first, before_all, time, back)))


def linear_scan_transposed(x: Any, decay: Any, dim: int) -> Any:
    """Translate ``a2c_compiled::linear_scan_transposed``."""
    return linear_scan(x, decay, dim, reverse=False)


SCANS: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
