"""The plain torch backend: the linear scan on any device. ``ops/registration.py`` uses this backend if no kernel exists."""

from typing import Tuple

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
    y, a = x, finite_or_nan(decay)
    span = 1
    while span < length:
        rest = length - span
        # Slices of `rest` steps: step i of `near` is t, step i of `far` is t + span (t - span with reverse=False). The other `span`
        # steps, from `edge` on, have no such neighbour and stay unchanged.
        near, far, edge = (0, span, rest) if reverse else (span, 0, 0)
        joined = join(*(tensor.narrow(dim, start, rest) for start in (near, far) for tensor in (a, y)))
        unchanged = a.narrow(dim, edge, span), y.narrow(dim, edge, span)
        a, y = (torch.cat((new, old) if reverse else (old, new), dim) for new, old in zip(joined, unchanged, strict=True))
        span *= 2
    return y


def finite_or_nan(decay: Tensor) -> Tensor:
    """Replaces infinity by NaN: :func:`join` takes an infinite product of decays for one that overflowed."""
    return decay.masked_fill(decay.isinf(), torch.nan)


def join(a: Tensor, y: Tensor, a_far: Tensor, y_far: Tensor) -> Tuple[Tensor, Tensor]:
    """Joins two neighbouring spans of steps: returns the product of their decays, and the scan over both.

    The results are NaN or infinite at the same steps as those of the scan that computes one step after the other: a product is zero only
    if a decay is zero. A product that underflows is the smallest number above zero, so that NaN and infinity stay visible. Infinity times
    a zero ``y_far`` counts as zero, because the product overflowed where the scan did not.

    Args:
        a, y: the product of the decays and the scan of the span that the scan reaches last. ``a`` is not infinite unless it overflowed.
        a_far, y_far: the same of the other span.
    """
    passes = a != 0
    y = y + torch.where(passes & ((y_far != 0) | a.isnan()), a * y_far, 0.0)
    product = a * a_far
    limits = torch.finfo(product.dtype)
    smallest = torch.full((), limits.smallest_normal * limits.eps, dtype=product.dtype, device=product.device)
    product = torch.where(product == 0, smallest.copysign(product), product)
    return torch.where(passes & (a_far != 0), product, 0.0), y
