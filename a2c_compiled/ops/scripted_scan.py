"""The linear scan in torch operations, for TorchScript. Files with this scan load without this library, and autograd differentiates it.

``weight[t]`` is the decay between step ``t`` and the previous step in the direction of the scan, so that for both directions
``y[t] = x[t] + weight[t] * y[previous]``. The first step of the scan has the weight 0.
"""

from typing import List

import torch
from torch import Tensor

from a2c_compiled._precision import widen


def scripted_scan(x: Tensor, decay: Tensor, dim: int, reverse: bool) -> Tensor:
    """Computes the linear scan. Arguments and result: as in :func:`a2c_compiled.ops.linear_scan.linear_scan`.

    On a CPU, the scan takes log2(T) rounds, or blocks of 8 steps if it is long. Products of decays may overflow or underflow in them. If
    NaN or infinity is involved, some result is then not finite, and the scan runs again, one step after the other, because a zero decay
    must stop NaN and infinity. If all values are finite, a product that underflows loses a contribution that single steps would keep.

    On other devices, the scan always takes one step after the other: a test of the results would read device memory on the host.

    One step after the other, a zero decay stops NaN and infinity in a gradient too. The second derivative with respect to ``x`` and a decay
    of exactly zero is then 0, which is wrong. :func:`~a2c_compiled.ops.linear_scan.linear_scan` computes it.
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
    """Computes the scan one step after the other."""
    xs, weights = _in_order(x, dim, reverse), _in_order(weight, dim, reverse)
    y = xs[0]
    steps = [y]
    for i in range(1, len(xs)):
        # Where the weight is 0, y enters without gradient, and its NaN and infinity count as 0. The derivative in this weight is then y.
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
    """Computes the scan in log2(T) rounds over all steps. After each round, ``y[t]`` contains twice as many steps.

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

    1. Scan the steps of each block from 0, all blocks at once.
    2. The last ``y`` and the product of the weights of each block are the ``x`` and ``weight`` of a scan over blocks. Doubling computes it.
    3. Scan each block again, from the last ``y`` of the previous block.
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
