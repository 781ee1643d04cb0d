"""The primitive in plain tensor operations for any length, for programs that load where no operator of this library is registered.

Recursive doubling: after k rounds every step has taken in the 2^k - 1 steps that follow it, and its decay is their product.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

import a2c_compiled.ops  # noqa: F401 - registers the operators
from a2c_compiled._precision import widen


def linear_scan(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """``a2c_compiled::linear_scan``."""
    return _doubling(widen(x), widen(decay), dim, 1).to(x.dtype)


def linear_scan_transposed(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """``a2c_compiled::linear_scan_transposed``: the weight of a step before is kept with that step, here with the one after it."""
    before, _ = _shifted(widen(decay), torch.ones((), dtype=torch.int64, device=x.device), dim, -1)
    return _doubling(widen(x), before, dim, -1).to(x.dtype)


def _doubling(x: Tensor, decay: Tensor, dim: int, direction: int) -> Tensor:
    length = x.size(dim)

    def unfinished(distance: Tensor, decay: Tensor, y: Tensor) -> Tensor:
        # One round at least, also for one step: AOTInductor's loop of no rounds returns what was in memory.
        return distance < torch.sym_max(length, 2)

    def double(distance: Tensor, decay: Tensor, y: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        beyond, exists = _shifted(y, distance, dim, direction)
        decay_beyond, _ = _shifted(decay, distance, dim, direction)
        # A zero decay cuts: it is selected, since a product would let NaN pass.
        passes = exists & (decay != 0)
        y = y + torch.where(passes, decay * beyond, 0.0)
        return distance * 2, torch.where(passes, decay * decay_beyond, 0.0), y

    start = torch.ones((), dtype=torch.int64, device=x.device)
    return while_loop(unfinished, double, (start, decay.clone(), x.clone()))[2]


def _shifted(x: Tensor, distance: Tensor, dim: int, direction: int) -> Tuple[Tensor, Tensor]:
    """For every step the entry ``distance`` steps on, and whether there is one."""
    length = x.size(dim)
    index = torch.arange(length, device=x.device) + direction * distance
    exists = ((index >= 0) & (index < length)).reshape([length] + [1] * (-dim - 1))
    return x.index_select(dim, index.clamp(torch.zeros_like(index), torch.full_like(index, length - 1))), exists


DECOMPOSITIONS = {
    torch.ops.a2c_compiled.linear_scan.default: linear_scan,
    torch.ops.a2c_compiled.linear_scan_transposed.default: linear_scan_transposed,
}
