"""The differentiable primitive: a first-order linear recurrence along one dimension, and its transpose.

``decay[t]`` is the weight between the steps ``t`` and ``t+1``. The reverse-time scan is ``y[t] = x[t] + decay[t] * y[t+1]``. Its transpose
runs forward in time: ``y[t] = x[t] + decay[t-1] * y[t-1]``. Each is the gradient of the other.
"""

import functools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from a2c_compiled._exporting import is_exporting
from a2c_compiled._kinds import check_tensor, flag, integer
from a2c_compiled.kernels import scan_forms, torch_scan
from a2c_compiled.ops.registration import register
from a2c_compiled.ops.scripted_scan import scripted_scan
from a2c_compiled.ops.transforms import batch_first, fresh_views

_reverse_op = register(scan_forms.LINEAR_SCAN, partial(torch_scan.linear_scan, reverse=True))
_transposed_op = register(scan_forms.LINEAR_SCAN_TRANSPOSED, partial(torch_scan.linear_scan, reverse=False))


class _LinearScan(torch.autograd.Function):
    """The scan and its gradient. The backward applies this same function, so the result is differentiable to any order.

    Reverse-time scan::

        y[t] = x[t] + decay[t] * y[t+1]
        grad_x[t] = grad_y[t] + decay[t-1] * grad_x[t-1]
        grad_decay[t] = grad_x[t] * y[t+1]

    Transposed scan::

        y[t] = x[t] + decay[t-1] * y[t-1]
        grad_x[t] = grad_y[t] + decay[t] * grad_x[t+1]
        grad_decay[t] = y[t] * grad_x[t+1]
    """

    @staticmethod
    def forward(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
        return _reverse_op(x, decay, dim) if reverse else _transposed_op(x, decay, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, decay, ctx.dim, ctx.reverse = inputs
        ctx.save_for_backward(decay, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        decay, y = ctx.saved_tensors
        grad_x = _LinearScan.apply(grad_y, decay, ctx.dim, not ctx.reverse)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        earlier, later = (grad_x, y) if ctx.reverse else (y, grad_x)
        return grad_x, _times_next(earlier, later, ctx.dim), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, decay: Tensor, dim: int, reverse: bool
    ) -> tuple[Tensor, int]:
        x, decay = batch_first(info.batch_size, in_dims, (x, decay))
        return _LinearScan.apply(x, decay, dim, reverse), 0


def _times_next(earlier: Tensor, later: Tensor, dim: int) -> Tensor:
    """Returns ``earlier[t] * later[t+1]``, and 0 at the last step.

    The code reads no size, because Dynamo may read it wrongly in a backward: from a stride of the incoming gradient. In the graph of
    ``f(result).sum()`` this stride is 0. Dynamo chooses the stride if a guard has merged the sizes of two arguments.
    """
    if is_exporting():  # an exporter would fix whether all steps but one are exactly one step
        steps = torch.arange(later.size(dim), device=later.device)
        is_last = (steps == steps.size(0) - 1).reshape(-1, *[1] * (-1 - dim))
        return (earlier * later.roll(-1, dim)).masked_fill(is_last, 0.0)
    before_last, last = earlier.tensor_split([-1], dim)
    return torch.cat([before_last * later.tensor_split([1], dim)[1], torch.zeros_like(last)], dim)


@functools.cache
def _compiled_scan() -> Any:
    """Returns the scan compiled by TorchScript."""
    return torch.jit.script(scripted_scan)


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool = True) -> Tensor:
    """Computes ``y[t] = x[t] + decay[t] * y[t+1]`` along ``dim``, or its transpose ``y[t] = x[t] + decay[t-1] * y[t-1]``.

    The result is differentiable in ``x`` and ``decay`` to any order. Where the decay is exactly zero, the result is ``x[t]``, even if the
    neighbouring ``y`` is NaN or infinite. Shapes, dtypes and devices are not checked.

    Args:
        x: ``[*B, T, *F]``, any floating dtype. Half precision is accumulated in float32.
        decay: the shape, dtype and device of ``x``.
        dim: the dimension of time, a negative integer.
        reverse: True for the reverse-time scan, False for the transpose.

    Returns:
        ``y``, with the shape and dtype of ``x``.

    Raises:
        TypeError: an argument has a wrong type.
    """
    check_tensor("x", x)
    check_tensor("decay", decay)
    if torch.jit.is_scripting():
        return scripted_scan(x, decay, dim, reverse)
    dim, reverse = integer("dim", dim), flag("reverse", reverse)
    if torch.jit.is_tracing() and is_exporting():
        return _compiled_scan()(x, decay, dim, reverse)  # a trace for a TorchScript file: a call of the compiled function
    if torch.compiler.is_dynamo_compiling():
        x, decay = fresh_views((x, decay))
    return _LinearScan.apply(x, decay, dim, reverse)
