"""The linear scan in torch operations, for TorchScript: its files load without this library, and autograd differentiates them.

The weight of a step is the decay between it and the previous step in the direction of the scan, so that for both directions
``y[t] = x[t] + weight[t] * y[previous]``. The first step of the scan has the weight 0.
"""

from typing import List

import torch
from torch import Tensor

from a2c_compiled._precision import widen


def scripted_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes the linear scan. Arguments and result: as in :func:`a2c_compiled.ops.linear_scan.linear_scan`.

    On a CPU, the scan first takes log2(T) rounds. Their results are right if all are finite: an infinite product of decays, and infinity
    times a product that underflows, always leave a result that is not finite. If one is not, the scan takes one step after the other, since
    a zero decay must stop NaN and infinity. On other devices it always does, because the host must not read device memory.

    One step after the other, NaN and infinity in a gradient stop at a zero decay too. Second derivatives are then 0 with respect to a
    decay of exactly zero and ``x``.
    """
    length = x.size(dim)
    if length == 0:
        return x.clone()
    wide = widen(x)
    decay_before_last = widen(decay).narrow(dim, 0, length - 1)
    none = torch.zeros_like(wide.narrow(dim, 0, 1))
    weight = torch.cat([decay_before_last, none] if reverse else [none, decay_before_last], dim)
    if x.is_cpu:
        # Up to 256 steps, doubling over all steps is faster than blocks. Blocks of 4 to 16 steps are about as fast as blocks of 8.
        y = _in_blocks(wide, weight, dim, reverse, 8) if length > 256 else _doubling(wide, weight, dim, reverse)
        if y.detach().sum().isfinite():  # a sum is finite only if all its terms are
            return y.to(x.dtype)
    return _step_by_step(wide, weight, dim, reverse).to(x.dtype)


def _step_by_step(x: Tensor, weight: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes one step after the other."""
    xs, weights = _in_order(x, dim, reverse), _in_order(weight, dim, reverse)
    y = xs[0]
    steps = [y]
    for i in range(1, len(xs)):
        # A zero weight stops y in the result, and the gradient on its way back. The derivative with respect to this weight is still y.
        y = xs[i] + weights[i] * torch.where(weights[i] == 0, y.detach().nan_to_num(0.0, 0.0, 0.0), y)
        steps.append(y)
    if reverse:
        steps.reverse()
    return torch.stack(steps, dim)


def _in_order(tensor: Tensor, dim: int, reverse: bool) -> List[Tensor]:
    """Returns the slices along ``dim`` in the direction of the scan."""
    steps = list(tensor.unbind(dim))
    if reverse:
        steps.reverse()
    return steps


def _doubling(x: Tensor, weight: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes the scan in log2(T) rounds over all steps. Each round doubles the number of steps whose terms ``y`` contains.

    ``roll`` wraps around only to steps whose weight is 0.
    """
    shift = -1 if reverse else 1
    y = torch.addcmul(x, weight, x.roll(shift, dim))
    while 2 * abs(shift) < x.size(dim):
        weight = weight * weight.roll(shift, dim)
        shift *= 2
        y = torch.addcmul(y, weight, y.roll(shift, dim))
    return y


def _in_blocks(x: Tensor, weight: Tensor, dim: int, reverse: bool, block_steps: int) -> Tensor:
    """Computes the scan in blocks of ``block_steps`` steps, with less work per step than :func:`_doubling`.

    1. The recurrence runs over the steps of a block, in all blocks at once, as if no block had a previous one. The last ``y`` and the
       product of the weights are the ``x`` and ``weight`` of a scan over the blocks.
    2. Doubling computes this scan.
    3. The recurrence runs over the steps of a block again, from the last ``y`` of the previous block.
    """
    length = x.size(dim)
    padding = [0] * (-2 * dim)
    padding[-1] = -length % block_steps
    xs = _in_order(torch.constant_pad_nd(x, padding).unflatten(dim, [-1, block_steps]), dim, reverse)
    weights = _in_order(torch.constant_pad_nd(weight, padding).unflatten(dim, [-1, block_steps]), dim, reverse)
    y, product = xs[0], weights[0]
    for i in range(1, block_steps):
        y = torch.addcmul(xs[i], weights[i], y)
        product = product * weights[i]
    last = _doubling(y, product, dim, reverse)
    y = last.roll(-1 if reverse else 1, dim)  # wraps around to a step whose weight is 0
    steps: List[Tensor] = []
    for i in range(block_steps - 1):
        y = torch.addcmul(xs[i], weights[i], y)
        steps.append(y)
    steps.append(last)
    if reverse:
        steps.reverse()
    return torch.stack(steps, dim).flatten(dim - 1, dim).narrow(dim, 0, length)
