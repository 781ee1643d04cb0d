"""The one primitive: a first-order linear recurrence along one dimension, and its transpose.

``decay[t]`` is the weight between the steps ``t`` and ``t + 1``. In reverse time ``y[t] = x[t] + decay[t] * y[t+1]``; the transpose
runs forward, ``y[t] = x[t] + decay[t-1] * y[t-1]``, and is the gradient of the first, as the first is of it.
"""

from functools import partial
from typing import Any, List

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.kernels import scan_forms, torch_scan
from a2c_compiled.ops.registration import register
from a2c_compiled.ops.transforms import batch_first, seen_by_dynamo

_reverse_op = register(scan_forms.LINEAR_SCAN, partial(torch_scan.linear_scan, reverse=True))
_transposed_op = register(scan_forms.LINEAR_SCAN_TRANSPOSED, partial(torch_scan.linear_scan, reverse=False))


class _LinearScan(torch.autograd.Function):
    """For ``y[t] = x[t] + a[t] y[t+1]``: ``gx[t] = gy[t] + a[t-1] gx[t-1]`` and ``ga[t] = gx[t] y[t+1]``.

    The backward calls this same function, which makes it differentiable to any order.
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
    """``earlier[t] * later[t+1]``, zero at the last step."""
    length = earlier.size(dim)
    if length == 0:
        return earlier
    product = earlier.narrow(dim, 0, length - 1) * later.narrow(dim, 1, length - 1)
    return torch.cat([product, torch.zeros_like(earlier.narrow(dim, 0, 1))], dim)


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool = True) -> Tensor:
    """``y[t] = x[t] + decay[t] * y[t+1]`` along ``dim``, or the transpose of it; differentiable in both arguments to any order.

    ``x`` and ``decay`` share shape, floating dtype and device; ``dim`` counts from the end (it is negative). A decay of
    exactly zero cuts the recurrence: not even NaN or infinity passes it.
    """
    if torch.jit.is_scripting():
        return _scripted_loop(x, decay, dim, reverse)
    if torch.compiler.is_dynamo_compiling():
        x, decay = seen_by_dynamo((x, decay))
    return _LinearScan.apply(x, decay, dim, reverse)


def _scripted_loop(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """The definition in TorchScript, which then loads where no operator of this library is registered."""
    length = x.size(dim)
    if length == 0:
        return x.clone()
    x_steps = widen(x).unbind(dim)
    decay_steps = widen(decay).unbind(dim)
    y = x_steps[length - 1 if reverse else 0]
    steps: List[Tensor] = [y]
    for i in range(1, length):
        t = length - 1 - i if reverse else i
        decay_t = decay_steps[t if reverse else t - 1]
        # Masked on the value's side: the derivative with respect to a zero decay is still `y`.
        y = x_steps[t] + decay_t * y.masked_fill((decay_t == 0) & ~y.isfinite(), 0.0)
        steps.append(y)
    if reverse:
        steps.reverse()
    return torch.stack(steps, dim).to(x.dtype)
