"""The primitive in plain tensor operations for any length, for programs that load where no operator of this library is registered.

Recursive doubling: after k rounds every step has taken in the 2^k - 1 steps that follow it, and its decay is their product.
"""

from typing import Any, Tuple

import torch
from torch import Tensor

import a2c_compiled.ops  # noqa: F401 - registers the operators
from a2c_compiled._precision import widen
from a2c_compiled._torch_internals import while_loop

_MOST_ROUNDS = 24
"""Where there are no loops: for some sixteen million steps."""


def linear_scan(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """``a2c_compiled::linear_scan``."""
    return _doubling(widen(x), widen(decay), dim, 1).to(x.dtype)


def linear_scan_transposed(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """``a2c_compiled::linear_scan_transposed``: the weight of a step before is kept with that step, here with the one after it."""
    steps, last = _steps(x, dim)
    before, _ = _taken(widen(decay), steps - 1, last, dim)
    return _doubling(widen(x), before, dim, -1).to(x.dtype)


def _doubling(x: Tensor, decay: Tensor, dim: int, direction: int) -> Tensor:
    # No size is read in the loop: torch.export may take it from a stride instead, which is another number where there are no steps.
    def unfinished(distance: Tensor, decay: Tensor, y: Tensor, steps: Tensor, last: Tensor) -> Tensor:
        # One round at least, also for one step: AOTInductor's loop of no rounds returns what was in memory.
        return distance <= last.clamp_min(1)

    def double(distance: Tensor, decay: Tensor, y: Tensor, steps: Tensor, last: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        beyond, exists = _taken(y, steps + direction * distance, last, dim)
        decay_beyond, _ = _taken(decay, steps + direction * distance, last, dim)
        # A zero decay cuts: it is selected, since a product would let NaN pass.
        passes = exists & (decay != 0)
        y = y + torch.where(passes, decay * beyond, 0.0)
        return distance * 2, torch.where(passes, decay * decay_beyond, 0.0), y

    carried: Any = (torch.ones((), dtype=torch.int64, device=x.device), decay.clone(), x.clone())
    steps = _steps(x, dim)
    if while_loop is None:
        for _ in range(_MOST_ROUNDS):
            carried = double(*(*carried, *steps))
        return carried[2]
    # The operator, not the function around it: that traces the loop with Dynamo, which makes inputs without values of numbers in which
    # two loops of one process differ, such as the direction.
    return while_loop(unfinished, double, carried, steps)[2]


def _steps(x: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Numbers of all steps, and of the last one."""
    length = x.size(dim)
    return torch.arange(length, device=x.device), torch.full((), length - 1, dtype=torch.int64, device=x.device)


def _taken(x: Tensor, index: Tensor, last: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """Entries of steps from 0 to ``last``, and whether there are such steps."""
    exists = (index >= 0) & (index <= last)
    for _ in range(-dim - 1):
        exists = exists.unsqueeze(-1)
    return x.index_select(dim, torch.minimum(index.clamp_min(0), last)), exists


DECOMPOSITIONS = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
