"""The linear scan in plain tensor operations, for any length.

Exported programs use these functions, so that they run without the operators of this library. The method is recursive doubling. Each
round, with distance ``d = 1, 2, 4, ...``, computes for ``y[t] = x[t] + decay[t] * y[t + 1]``::

    y[t] = y[t] + decay[t] * y[t + d]
    decay[t] = decay[t] * decay[t + d]

After k rounds, ``y[t]`` contains the terms of ``x[t]`` and of the ``2^k - 1`` steps after it.
"""

from typing import Any, Tuple

import torch
from torch import Tensor

import a2c_compiled.ops  # noqa: F401 - registers the operators
from a2c_compiled._precision import widen
from a2c_compiled._torch_internals import while_loop
from a2c_compiled.kernels.torch_scan import finite_or_nan, join

_MAX_ROUNDS = 24
"""Number of rounds if torch has no loop operator: enough for ``2^24`` (about sixteen million) steps."""


def linear_scan(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """Computes ``a2c_compiled::linear_scan``, ``y[t] = x[t] + decay[t] * y[t + 1]``. ``dim`` is negative.

    Returns ``y`` in the shape and dtype of ``x``.
    """
    return _doubling(widen(x), widen(decay), dim, 1).to(x.dtype)


def linear_scan_transposed(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """Computes ``a2c_compiled::linear_scan_transposed``, ``y[t] = x[t] + decay[t - 1] * y[t - 1]``. ``dim`` is negative.

    ``decay`` is first shifted by one step, so that each step holds the weight of the step before it.
    """
    steps, last = _steps(x, dim)
    before, _ = _entries_at(widen(decay), steps - 1, last, dim)
    return _doubling(widen(x), before, dim, -1).to(x.dtype)


def _doubling(x: Tensor, decay: Tensor, dim: int, direction: int) -> Tensor:
    """Computes ``y[t] = x[t] + decay[t] * y[t + direction]``. ``direction`` is 1 or -1."""

    # The loop reads no size: torch.export may take a size from a stride, which is another number if there are no steps.
    def unfinished(distance: Tensor, decay: Tensor, y: Tensor, steps: Tensor, last: Tensor) -> Tensor:
        # At least one round, also for one step: a loop without rounds in AOTInductor returns uninitialised memory.
        return distance <= last.clamp_min(1)

    def double(distance: Tensor, decay: Tensor, y: Tensor, steps: Tensor, last: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        beyond, exists = _entries_at(y, steps + direction * distance, last, dim)
        decay_beyond, _ = _entries_at(decay, steps + direction * distance, last, dim)
        return distance * 2, *join(torch.where(exists, decay, 0.0), y, decay_beyond, beyond)

    carried: Any = (torch.ones((), dtype=torch.int64, device=x.device), finite_or_nan(decay), x.clone())
    steps = _steps(x, dim)
    if while_loop is None:
        for _ in range(_MAX_ROUNDS):
            carried = double(*(*carried, *steps))
        return carried[2]
    # Calls the operator, not the function around it. That function traces the loop with Dynamo, which turns Python numbers that differ
    # between two loops of a process, such as the direction, into inputs without values.
    return while_loop(unfinished, double, carried, steps)[2]


def _steps(x: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Returns the indices of all steps, and the index of the last step as a 0-d tensor."""
    length = x.size(dim)
    return torch.arange(length, device=x.device), torch.full((), length - 1, dtype=torch.int64, device=x.device)


def _entries_at(x: Tensor, index: Tensor, last: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Returns the entries of ``x`` at ``index``, clamped to existing steps, and whether each index is an existing step."""
    exists = (index >= 0) & (index <= last)
    for _ in range(-dim - 1):
        exists = exists.unsqueeze(-1)
    return x.index_select(dim, torch.minimum(index.clamp_min(0), last)), exists


DECOMPOSITIONS = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
