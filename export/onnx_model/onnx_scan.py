"""The linear scan in ONNX, in standard operators.

- ``linear_scan``: ``y[t] = x[t] + decay[t] * y[t + 1]``.
- ``linear_scan_transposed``: ``y[t] = x[t] + decay[t - 1] * y[t - 1]``.

Few steps are computed one after the other, by the operator ``Scan``. More steps are computed in blocks, see :func:`_in_blocks`. If a result
of the blocks is not finite, ``Scan`` computes all results again, because a zero decay must stop NaN and infinity.
"""

from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape
from onnxscript import opset18

import a2c_compiled.ops  # noqa: F401 - registers the operators

op: Any = opset18  # Any, because the stubs of onnxscript expect protobuf's types

# Up to this many steps, Scan is faster.
_MAX_SCAN_STEPS = 16
_BLOCK_STEPS = 4
_END = 2**31 - 1
"""End of a slice that reaches the end of its dimension."""


class _Body:
    """Records the operators of a subgraph, the body of an ``If``, ``Loop`` or ``Scan``: ``body.Mul(a, b)`` returns the product."""

    def __init__(self) -> None:
        self._tape = Tape()

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        def record(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            if outputs == 1:
                return self._tape.op(operator, inputs, attributes)
            return self._tape.op_multi_out(operator, inputs, attributes, num_outputs=outputs)

        return record

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """Returns the subgraph."""
        return ir.Graph(inputs, outputs, nodes=self._tape.nodes, name=name)


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
    y = _Scan(x_, decay_, rank, dtype, reverse).result()
    if axis != 0:
        y = op.Transpose(y, perm=[time_first.index(i) for i in range(rank)])
    return op.CastLike(y, x) if is_half else y


def _ints(*numbers: int) -> Any:
    return op.Constant(value_ints=numbers)


class _Scan:
    """One scan along the first dimension.

    Args:
        x, decay: ``[T, *F]``, of ``dtype``.
        rank: number of dimensions of ``x``.
        reverse: the direction.
    """

    def __init__(self, x: Any, decay: Any, rank: int, dtype: ir.DataType, reverse: bool) -> None:
        self.x, self.decay, self.rank, self.dtype, self.reverse = x, decay, rank, dtype, reverse
        self.length = op.Shape(x, start=0, end=1)
        self.zero = self._number(0.0)

    def result(self) -> Any:
        """Returns ``y``, ``[T, *F]``."""
        few_steps, many_steps = _Body(), _Body()
        y = self._in_blocks(many_steps)
        # A sum is finite only if all its terms are.
        largest = self._number(np.finfo(self.dtype.numpy()).max)
        finite = many_steps.LessOrEqual(many_steps.Abs(many_steps.ReduceSum(y, keepdims=0)), largest)
        unchanged, again = _Body(), _Body()
        checked = many_steps.If(
            finite,
            then_branch=unchanged.graph([], [unchanged.Identity(y)], "finite"),
            else_branch=again.graph([], [self._step_by_step(again)], "not_finite"),
        )
        return op.If(
            op.LessOrEqual(self.length, _ints(_MAX_SCAN_STEPS)),
            then_branch=few_steps.graph([], [self._step_by_step(few_steps)], "few_steps"),
            else_branch=many_steps.graph([], [checked], "many_steps"),
        )

    def _step_by_step(self, body: _Body) -> ir.Value:
        """Computes ``y`` by ``Scan``."""
        x, decay = self.x, self.decay
        if self.reverse:
            # Gather reverses time. Few runtimes support negative steps of Slice, or the direction attributes of Scan. Range must not count
            # down itself: onnxruntime 1.31 turns Gather(x, Range(T - 1, -1, -1)) into a Slice that is empty.
            steps, one = body.Squeeze(self.length), self._int(1)
            backwards = body.Sub(body.Sub(steps, one), body.Range(self._int(0), steps, one))
            # The step after t, in reverse, is t - 1, which y[t] enters with decay[t - 1]. No step follows step 0: its index -1 is not used.
            x, decay = body.Gather(x, backwards), body.Gather(decay, body.Sub(backwards, one))
        entering, x_t, decay_t = (self._value(name) for name in ("entering", "x_t", "decay_t"))
        step = _Body()
        y_t = step.Add(x_t, entering)
        # A zero decay cuts the recurrence. Where selects 0, since the product 0 * NaN would be NaN.
        leaving = step.Where(step.Equal(decay_t, self.zero), self.zero, step.Mul(decay_t, y_t))
        graph = step.graph([entering, x_t, decay_t], [leaving, y_t], "step")
        nothing = body.Expand(self.zero, body.Shape(x, start=1))
        _, y = body.Scan(nothing, x, decay, outputs=2, body=graph, num_scan_inputs=2)
        return body.Gather(y, backwards) if self.reverse else y

    def _in_blocks(self, body: _Body) -> ir.Value:
        """Computes ``y`` without a loop over the steps. If all results are finite, they are right.

        1. The recurrence runs over the steps of a block, in all blocks at once, as if nothing entered a block. The last result of each
           block and the product of its decays are the ``x`` and ``decay`` of a scan over the blocks.
        2. Recursive doubling computes this scan.
        3. The recurrence runs again over the steps of a block, starting from the result of the block before.
        """
        blocks_last = [1, 0, *range(2, self.rank + 1)]
        count = body.Div(body.Add(self.length, _ints(_BLOCK_STEPS - 1)), _ints(_BLOCK_STEPS))
        missing = body.Sub(body.Mul(count, _ints(_BLOCK_STEPS)), self.length)
        rest = body.Shape(self.x, start=1)
        shape = body.Concat(count, _ints(_BLOCK_STEPS), rest, axis=0)
        # The weight with which y enters each step. It is zero at the first step of the scan, where decay is not defined.
        inner = body.Slice(self.decay, _ints(0), _ints(-1), _ints(0))
        end = self._pads(self.rank, 0, True)
        first = self._pads(self.rank, 0, self.reverse)
        padded_x = body.Pad(self.x, body.Mul(missing, end))
        padded_weight = body.Pad(inner, body.Add(body.Mul(missing, end), first))
        xs, weights = (
            list(
                body.Split(
                    body.Transpose(body.Reshape(padded, shape), perm=blocks_last), outputs=_BLOCK_STEPS, num_outputs=_BLOCK_STEPS
                )
            )
            for padded in (padded_x, padded_weight)
        )
        if self.reverse:
            xs.reverse(), weights.reverse()
        y, weight = xs[0], weights[0]
        for x_i, weight_i in zip(xs[1:], weights[1:], strict=True):
            y, weight = body.Add(x_i, body.Mul(weight_i, y)), body.Mul(weight_i, weight)
        last = self._doubling(body, y, weight, count)
        y = body.Pad(self._far(body, last, _ints(1)), self._pads(self.rank + 1, 1, self.reverse))
        steps: List[Any] = []
        for x_i, weight_i in zip(xs[:-1], weights[:-1], strict=True):
            y = body.Add(x_i, body.Mul(weight_i, y))
            steps.append(y)
        steps.append(last)
        if self.reverse:
            steps.reverse()
        y = body.Transpose(body.Concat(*steps, axis=0), perm=blocks_last)
        y = body.Reshape(y, body.Concat(body.Add(self.length, missing), rest, axis=0))
        return body.Slice(y, _ints(0), self.length, _ints(0))

    def _doubling(self, body: _Body, x: ir.Value, weight: ir.Value, count: ir.Value) -> ir.Value:
        """Computes the scan along dimension 1 of ``[1, blocks, *F]`` in log2(blocks) rounds.

        In the round with distance ``d = 1, 2, 4, ...``, ``weight`` has an entry for each two blocks with this distance::

            y[t] = y[t] + weight[t] * y[t + d]
            weight[t] = weight[t] * weight[t + d]
        """
        pads = self._pads(self.rank + 1, 1, self.reverse)
        between = (0, -1) if self.reverse else (1, _END)
        weight = body.Slice(weight, _ints(between[0]), _ints(between[1]), _ints(1))
        number, goes_on = ir.Value(name="round"), ir.Value(name="goes_on")
        number.type, goes_on.type = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)
        number.shape = goes_on.shape = ir.Shape([])
        distance = ir.Value(name="distance", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
        y, products = self._value("y"), self._value("products")
        once = _Body()
        new_y = once.Add(y, once.Pad(once.Mul(products, self._far(once, y, distance)), once.Mul(distance, pads)))
        near = once.Slice(products, _ints(0), once.Neg(distance), _ints(1))
        far = once.Slice(products, distance, _ints(_END), _ints(1))
        doubled = once.Add(distance, distance)
        outputs = [once.Squeeze(once.Less(doubled, count)), doubled, new_y, once.Mul(near, far)]
        graph = once.graph([number, goes_on, distance, y, products], outputs, "double")
        unfinished = body.Squeeze(body.Less(_ints(1), count))
        return body.Loop(None, unfinished, _ints(1), x, weight, outputs=3, body=graph)[1]

    def _far(self, body: _Body, y: ir.Value, distance: Any) -> ir.Value:
        """Returns the entries of ``[1, blocks, *F]`` that have another one at ``distance`` before them in time (after, if reversed)."""
        if self.reverse:
            return body.Slice(y, distance, _ints(_END), _ints(1))
        return body.Slice(y, _ints(0), body.Neg(distance), _ints(1))

    def _pads(self, rank: int, axis: int, at_end: bool) -> Any:
        """Returns the argument of ``Pad`` for one entry along ``axis``."""
        pads = [0] * (2 * rank)
        pads[axis + rank if at_end else axis] = 1
        return _ints(*pads)

    def _number(self, number: float) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(number, self.dtype.numpy())))

    def _int(self, number: int) -> Any:
        return op.Constant(value_int=number)

    def _value(self, name: str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(self.dtype))


def linear_scan_transposed(x: Any, decay: Any, dim: int) -> Any:
    """Translates ``a2c_compiled::linear_scan_transposed``."""
    return linear_scan(x, decay, dim, reverse=False)


SCANS: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
