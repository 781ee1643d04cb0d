"""The plain torch backend: the linear scan on any device. ``ops/registration.py`` uses this backend if no kernel exists."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen

# Up to this many steps, one multiply-add per step is faster than log2(T) passes over all the data.
_MAX_LOOP_STEPS = 32


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes ``y[t] = x[t] + decay[t] * y[t+1]``, or with ``reverse=False`` ``y[t] = x[t] + decay[t-1] * y[t-1]``.

    Where the decay is zero, the result is exactly ``x[t]``, even if the neighbouring ``y`` is NaN or infinite.

    Args:
        x, decay: ``[*B, T, *F]`` with time at ``dim``, one floating dtype. Half precision is computed in float32.
        dim: the dimension of time.
        reverse: whether the scan runs in reverse time.

    Returns:
        ``y``, with the shape and dtype of ``x``.
    """
    scan = _loop if x.size(dim) <= _MAX_LOOP_STEPS else _doubling
    if not reverse:
        decay = decay.roll(1, dim)  # step t then reads decay[t-1]; the first step has no previous y, so it needs no decay
    return scan(widen(x), widen(decay), dim, reverse).to(x.dtype)


def _loop(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes one step after the other, in the direction of the scan. Arguments and result: as in :func:`linear_scan`."""
    y = torch.empty_like(x)
    steps = list(zip(x.unbind(dim), decay.unbind(dim), (decay == 0).unbind(dim), y.unbind(dim), strict=True))
    previous = None
    for x_t, decay_t, cut_t, y_t in reversed(steps) if reverse else steps:
        if previous is None:
            y_t.copy_(x_t)
        else:
            torch.addcmul(x_t, decay_t, previous, out=y_t)
            torch.where(cut_t, x_t, y_t, out=y_t)
        previous = y_t
    return y


def _doubling(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes the scan in log2(T) passes over all steps (Hillis and Steele, 1986).

    Before a pass, ``y[t]`` is the scan over at most ``span`` steps from ``t`` on, and ``a[t]`` is the product of the decays of these steps.
    The pass doubles ``span``::

        y[t] = y[t] + a[t] * y[t + span]
        a[t] = a[t] * a[t + span]

    With ``reverse=False``, the pass reads ``t - span`` instead of ``t + span``.
    """
    length = x.size(dim)
    y, a = x, decay
    span = 1
    while span < length:
        rest = length - span
        # Slices of `rest` steps: step i of `near` is t, step i of `far` is t + span (t - span with reverse=False). The other `span`
        # steps, from `edge` on, have no such neighbour and stay unchanged.
        near, far, edge = (0, span, rest) if reverse else (span, 0, 0)
        y_near, y_far = y.narrow(dim, near, rest), y.narrow(dim, far, rest)
        a_near, a_far = a.narrow(dim, near, rest), a.narrow(dim, far, rest)
        cut = a_near == 0
        # A product of decays may have overflowed to infinity. Infinity times a zero y_far would be NaN.
        y_cut = cut | (y_far == 0)
        y_next = torch.empty_like(x)
        y_next.narrow(dim, edge, span).copy_(y.narrow(dim, edge, span))
        torch.where(y_cut, y_near, torch.addcmul(y_near, a_near, y_far), out=y_next.narrow(dim, near, rest))
        a_next = torch.empty_like(x)
        a_next.narrow(dim, edge, span).copy_(a.narrow(dim, edge, span))
        torch.mul(a_near, a_far.masked_fill(cut, 0.0), out=a_next.narrow(dim, near, rest))
        y, a = y_next, a_next
        span *= 2
    return y
