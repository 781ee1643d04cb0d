"""The linear scan in ONNX, in standard operators.

- ``linear_scan``: ``y[t] = x[t] + decay[t] * y[t + 1]``.
- ``linear_scan_transposed``: ``y[t] = x[t] + decay[t - 1] * y[t - 1]``.

Few steps are computed one after the other, by the operator ``Scan``. More steps are computed in blocks, see :func:`_in_blocks`. If a result
of the blocks is not finite, ``Scan`` computes all results again, because a zero decay must stop NaN and infinity.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence

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
    """Records the operators of a subgraph, the body of an ``If``, ``Loop`` or ``Scan``: ``body.Mul(a, b)`` returns the product.

    Its values have names that no graph around it has. Otherwise shape inference would mix up their types.
    """

    def __init__(self, name: str) -> None:
        self._name, self._tape, self._count = f"linear_scan.{name}", Tape(), 0

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        def record(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            values = self._tape.op_multi_out(operator, inputs, attributes, num_outputs=outputs)
            for value in values:
                value.name = f"{self._name}.{self._count}"
                self._count += 1
            return values[0] if outputs == 1 else values

        return record

    def input(self, name: str, dtype: ir.DataType, shape: Optional[Sequence[int]] = None) -> ir.Value:
        """Returns a value to use as an input of the subgraph."""
        return ir.Value(
            name=f"{self._name}.{name}", type=ir.TensorType(dtype), shape=None if shape is None else ir.Shape(shape)
        )

    def graph(self, inputs: Sequence[ir.Value], *outputs: ir.Value) -> ir.Graph:
        """Returns the subgraph."""
        return ir.Graph(inputs, outputs, nodes=self._tape.nodes, name=self._name)


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
        few_steps, many_steps = _Body("few_steps"), _Body("many_steps")
        y = self._in_blocks(many_steps)
        # A sum is finite only if all its terms are.
        largest = self._number(np.finfo(self.dtype.numpy()).max)
        finite = many_steps.LessOrEqual(many_steps.Abs(many_steps.ReduceSum(y, keepdims=0)), largest)
        unchanged, again = _Body("finite"), _Body("not_finite")
        checked = many_steps.If(
            finite,
            then_branch=unchanged.graph([], unchanged.Identity(y)),
            else_branch=again.graph([], self._step_by_step(again)),
        )
        return op.If(
            op.LessOrEqual(self.length, _ints(_MAX_SCAN_STEPS)),
            then_branch=few_steps.graph([], self._step_by_step(few_steps)),
            else_branch=many_steps.graph([], checked),
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
        step = _Body("step")
        entering, x_t, decay_t = (step.input(name, self.dtype) for name in ("entering", "x_t", "decay_t"))
        cut_t = step.input("cut_t", ir.DataType.BOOL)
        y_t = step.Add(x_t, entering)
        # A zero decay cuts the recurrence. Where selects 0, since the product 0 * NaN would be NaN.
        leaving = step.Where(cut_t, self.zero, step.Mul(decay_t, y_t))
        graph = step.graph([entering, x_t, decay_t, cut_t], leaving, y_t)
        nothing, cut = body.Expand(self.zero, body.Shape(x, start=1)), body.Equal(decay, self.zero)
        _, y = body.Scan(nothing, x, decay, cut, outputs=2, body=graph, num_scan_inputs=3)
        return body.Gather(y, backwards) if self.reverse else y

    def _in_blocks(self, body: _Body) -> ir.Value:
        """Computes ``y`` without a loop over the steps. If all results are finite, they are right.

        1. The recurrence runs over the steps of a block, in all blocks at once, as if nothing entered a block. The last result of each
           block and the product of its decays are the ``x`` and ``decay`` of a scan over the blocks.
        2. Recursive doubling computes this scan.
        3. The recurrence runs again over the steps of a block, starting from the result of the block before.
        """
        count = body.Div(body.Add(self.length, _ints(_BLOCK_STEPS - 1)), _ints(_BLOCK_STEPS))
        missing = body.Sub(body.Mul(count, _ints(_BLOCK_STEPS)), self.length)
        at_end = body.Mul(missing, self._pads(self.rank, 0, True))
        # The weight with which a step enters the next one in the direction of the scan belongs to the next one. It is 0 at the first step.
        before_last = body.Slice(self.decay, _ints(0), _ints(-1), _ints(0))
        weight = body.Pad(before_last, body.Add(at_end, self._pads(self.rank, 0, self.reverse)))
        xs, weights = self._split(body, body.Pad(self.x, at_end), count), self._split(body, weight, count)
        y, product = xs[0], weights[0]
        for x_i, weight_i in zip(xs[1:], weights[1:], strict=True):
            y, product = body.Add(x_i, body.Mul(weight_i, y)), body.Mul(weight_i, product)
        last = self._doubling(body, y, product, count)
        y = body.Pad(self._previous(body, last, _ints(1)), self._pads(self.rank + 1, 1, self.reverse))
        steps = []
        for x_i, weight_i in zip(xs[:-1], weights[:-1], strict=True):
            y = body.Add(x_i, body.Mul(weight_i, y))
            steps.append(y)
        y = body.Transpose(body.Concat(*self._ordered([*steps, last]), axis=0), perm=self._blocks_second())
        shape = body.Concat(body.Add(self.length, missing), body.Shape(self.x, start=1), axis=0)
        return body.Slice(body.Reshape(y, shape, allowzero=1), _ints(0), self.length, _ints(0))

    def _split(self, body: _Body, padded: ir.Value, count: ir.Value) -> List[ir.Value]:
        """Returns the steps of the blocks, ``[1, blocks, *F]`` each, in the direction of the scan."""
        shape = body.Concat(count, _ints(_BLOCK_STEPS), body.Shape(self.x, start=1), axis=0)
        blocks = body.Transpose(body.Reshape(padded, shape, allowzero=1), perm=self._blocks_second())
        return self._ordered(body.Split(blocks, outputs=_BLOCK_STEPS, num_outputs=_BLOCK_STEPS))

    def _ordered(self, steps: Sequence[ir.Value]) -> List[ir.Value]:
        """Turns the order in time into the direction of the scan, and the reverse."""
        return list(reversed(steps)) if self.reverse else list(steps)

    def _blocks_second(self) -> List[int]:
        """Returns the permutation that swaps the first two dimensions of ``[blocks, steps, *F]``."""
        return [1, 0, *range(2, self.rank + 1)]

    def _doubling(self, body: _Body, x: ir.Value, weight: ir.Value, count: ir.Value) -> ir.Value:
        """Computes the scan over the blocks, ``[1, blocks, *F]``, in log2(blocks) rounds, the body of a ``Loop``.

        In the round with ``distance = 1, 2, 4, ...``, ``products`` has an entry for each two blocks with this distance: the product of the
        weights between them::

            y[t] = y[t] + products[t] * y[t + distance]
            products[t] = products[t] * products[t + distance]
        """
        pads = self._pads(self.rank + 1, 1, self.reverse)
        between = body.Slice(weight, *((_ints(0), _ints(-1)) if self.reverse else (_ints(1), _ints(_END))), _ints(1))
        round_ = _Body("round")
        number, unfinished = round_.input("number", ir.DataType.INT64, []), round_.input("unfinished", ir.DataType.BOOL, [])
        distance = round_.input("distance", ir.DataType.INT64, [1])
        y, products = round_.input("y", self.dtype), round_.input("products", self.dtype)
        terms = round_.Mul(products, self._previous(round_, y, distance))
        new_y = round_.Add(y, round_.Pad(terms, round_.Mul(distance, pads)))
        near = round_.Slice(products, _ints(0), round_.Neg(distance), _ints(1))
        far = round_.Slice(products, distance, _ints(_END), _ints(1))
        doubled = round_.Add(distance, distance)
        outputs = [round_.Squeeze(round_.Less(doubled, count)), doubled, new_y, round_.Mul(near, far)]
        graph = round_.graph([number, unfinished, distance, y, products], *outputs)
        several = body.Squeeze(body.Less(_ints(1), count))
        return body.Loop(None, several, _ints(1), x, between, outputs=3, body=graph)[1]

    def _previous(self, body: _Body, y: ir.Value, distance: Any) -> ir.Value:
        """Returns the ``y`` of all blocks that are ``distance`` before another block in the direction of the scan."""
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


def linear_scan_transposed(x: Any, decay: Any, dim: int) -> Any:
    """Translates ``a2c_compiled::linear_scan_transposed``."""
    return linear_scan(x, decay, dim, reverse=False)


SCANS: Dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
