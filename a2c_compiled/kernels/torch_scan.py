"""The linear recurrence in plain torch, on any device: the backend that is always there."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen

# Up to this many steps one fused multiply-add per step is faster than log2(T) passes over all the data.
_LONGEST_LOOP = 32


def linear_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """``y[t] = x[t] + decay[t] * y[t+1]``, or ``x[t] + decay[t-1] * y[t-1]``. A zero decay cuts: NaN does not pass it."""
    scan = _loop if x.size(dim) <= _LONGEST_LOOP else _doubling
    if not reverse:
        decay = decay.roll(1, dim)  # what comes round to the first step meets nothing there
    return scan(widen(x), widen(decay), dim, reverse).to(x.dtype)


def _loop(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """One step at a time, in the order of the definition."""
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
    """After pass k every step holds the sum over the 2^k steps that follow it (Hillis and Steele, 1986)."""
    length = x.size(dim)
    y, a = x, decay
    span = 1
    while span < length:
        rest = length - span
        # `near` are the steps that still have something `span` further on, `far` is that something.
        near, far, edge = (0, span, rest) if reverse else (span, 0, 0)
        y_near, y_far = y.narrow(dim, near, rest), y.narrow(dim, far, rest)
        a_near, a_far = a.narrow(dim, near, rest), a.narrow(dim, far, rest)
        cut = a_near == 0
        # Nothing passes a product of decays that has overflowed, either, if nothing comes in.
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
