"""The one primitive: a first-order linear recurrence along one dimension, forward or in reverse time.

``torch.ops.a2c_compiled.linear_scan`` is the bare operator, one node in any captured graph. A backend is one more
``_library.impl`` line for its dispatch key. The gradient lives in a :class:`torch.autograd.Function` around it rather than
in the operator's own autograd registration, because ``torch.func`` transforms accept only the former.
"""

from typing import Any, List

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.kernels import cpu_scan, torch_scan

_library = torch.library.Library("a2c_compiled", "DEF")  # lives as long as the module: its end would unregister the operator
_library.define("linear_scan(Tensor x, Tensor decay, int dim, bool reverse) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

# The bare operator has no gradient of its own: autograd passes it by.
_library.impl("linear_scan", torch.library.fallthrough_kernel, "Autograd")
_library.impl("linear_scan", torch_scan.linear_scan, "CompositeExplicitAutograd")
_library.impl("linear_scan", cpu_scan.linear_scan, "CPU")


@torch.library.register_fake("a2c_compiled::linear_scan", lib=_library)
def _(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    return torch.empty_like(x)


class _LinearScan(torch.autograd.Function):
    """The adjoint of the recurrence is the recurrence in the other direction, its decay shifted by one step.

    For ``y[t] = x[t] + a[t] y[t+1]``: ``gx[t] = gy[t] + a[t-1] gx[t-1]`` and ``ga[t] = gx[t] y[t+1]``.
    The backward calls this same function, which makes it differentiable to any order.
    """

    @staticmethod
    def forward(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
        return torch.ops.a2c_compiled.linear_scan(x, decay, dim, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, decay, ctx.dim, ctx.reverse = inputs
        ctx.save_for_backward(decay, output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        decay, y = ctx.saved_tensors
        toward_later = 1 if ctx.reverse else -1
        grad_x = _LinearScan.apply(grad_y, _shift(decay, ctx.dim, toward_later), ctx.dim, not ctx.reverse)
        grad_decay = grad_x * _shift(y, ctx.dim, -toward_later) if ctx.needs_input_grad[1] else None
        return grad_x, grad_decay, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, decay: Tensor, dim: int, reverse: bool
    ) -> tuple[Tensor, int]:
        # `dim` counts from the end, so a batch dimension in front leaves it alone.
        x, decay = (
            tensor.expand(info.batch_size, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)
            for tensor, in_dim in zip((x, decay), in_dims, strict=False)
        )
        return _LinearScan.apply(x, decay, dim, reverse), 0


def _shift(tensor: Tensor, dim: int, by: int) -> Tensor:
    """``shifted[t] = tensor[t - by]`` for ``by`` of 1 or -1, zero where that step does not exist."""
    length = tensor.size(dim)
    if length == 0:
        return tensor
    kept = tensor.narrow(dim, 0 if by > 0 else 1, length - 1)
    zero = torch.zeros_like(tensor.narrow(dim, 0, 1))
    return torch.cat([zero, kept] if by > 0 else [kept, zero], dim)


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """``y[t] = x[t] + decay[t] * y[t+1]`` along ``dim`` (``y[t-1]`` if not ``reverse``), differentiable in both.

    ``x`` and ``decay`` share shape, floating dtype and device; ``dim`` counts from the end (it is negative). A decay of
    exactly zero cuts the recurrence: not even NaN or infinity passes it.
    """
    if torch.jit.is_scripting():
        return _scripted_loop(x, decay, dim, reverse)
    if torch.compiler.is_dynamo_compiling():
        # Dynamo does not see that torch.func.grad has its own inputs require gradients, and would leave out the backward;
        # it sees it in whatever is computed from them.
        x, decay = x.view_as(x), decay.view_as(decay)
    return _LinearScan.apply(x, decay, dim, reverse)


def _scripted_loop(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """The definition in TorchScript, which then loads where no operator of this library is registered."""
    if x.size(dim) == 0:
        return x.clone()
    x_steps = widen(x).unbind(dim)
    decay_steps = widen(decay).unbind(dim)
    y = torch.zeros_like(x_steps[0])
    steps: List[Tensor] = []
    for i in range(len(x_steps)):
        t = len(x_steps) - 1 - i if reverse else i
        # Masked on the value's side: the derivative with respect to a zero decay is still `y`.
        y = x_steps[t] + decay_steps[t] * y.masked_fill((decay_steps[t] == 0) & ~y.isfinite(), 0.0)
        steps.append(y)
    if reverse:
        steps.reverse()
    return torch.stack(steps, dim).to(x.dtype)
