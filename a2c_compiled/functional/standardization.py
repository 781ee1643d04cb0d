"""Standardisation over a batch, over groups of it, over processes. TorchScript, but for processes."""

from typing import List, Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled._torch_internals import sum_over_processes


def standardize(
    x: Tensor,
    eps: float,
    mask: Optional[Tensor] = None,
    group: Optional[Tensor] = None,
    separate_dim: Optional[int] = None,
    across_processes: bool = False,
) -> Tensor:
    r""":math:`(x - \bar x) / \max(\sigma_x, \epsilon)` over all elements, with the unbiased standard deviation; 0 for a single element.

    Args:
        x: any shape, floating.
        eps: smallest standard deviation.
        mask: bool, of the shape of ``x``: what counts. The rest is 0 in the result, whatever it was.
        group: integers, of the shape of ``x`` or of its leading dimensions: entries of one number are standardised by themselves.
        separate_dim: a dimension whose entries are standardised each by itself.
        across_processes: over the data of all processes of ``torch.distributed``'s default group, where there is one (every process is
            to call; no gradient reaches mean and deviation). Nothing in TorchScript.

    Raises:
        ValueError: a shape, device or ``separate_dim`` does not fit, or groups are to be standardised across processes.
        TypeError: ``group`` is not of integers, or ``mask`` not bool.
    """
    wide = widen(x)
    if separate_dim is not None and (separate_dim < -x.dim() or separate_dim >= x.dim()):
        raise ValueError(f"separate_dim: expected a dimension of data of shape {list(x.shape)}, got {separate_dim}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype torch.bool, got {mask.dtype}")
        if mask.shape != x.shape:
            raise ValueError(f"mask: expected the shape of the data, {list(x.shape)}, got {list(mask.shape)}")
        if mask.device != x.device:
            raise ValueError(f"mask: expected the device of the data, {x.device}, got {mask.device}")
        wide = wide.masked_fill(~mask, 0.0)
    index: Optional[Tensor] = None
    if group is not None:
        if across_processes:
            raise ValueError("across_processes: expected False with groups, whose numbers differ between processes, got True")
        index = _group_of_each(group, x, separate_dim)
    dims: List[int] = []
    if separate_dim is not None:
        for i in range(x.dim()):
            if i != separate_dim % x.dim():
                dims.append(i)
    if mask is None and index is None and separate_dim is None and not across_processes:
        total = wide.sum()
        centered = wide - total / max(wide.numel(), 1)
        # As a tensor: a graph for any number of elements takes it for granted that there are two or more.
        variance = centered.square().sum() / torch.full_like(total, wide.numel() - 1).clamp_min(1.0)
    else:
        counted = torch.ones_like(wide) if mask is None else mask.to(wide.dtype)
        count = _total(counted, index, dims, across_processes)
        centered = wide - _total(wide, index, dims, across_processes) / count.clamp_min(1.0)
        if mask is not None:
            centered = centered.masked_fill(~mask, 0.0)
        variance = _total(centered.square(), index, dims, across_processes) / (count - 1.0).clamp_min(1.0)
    # Clamped before the root, whose derivative at 0 is infinite.
    return (centered / variance.clamp_min(eps * eps).sqrt()).to(x.dtype)


def _total(x: Tensor, index: Optional[Tensor], dims: List[int], across_processes: bool) -> Tensor:
    """Sums that broadcast to ``x``: of each group, else over ``dims``, which are all where there are none."""
    if index is not None:
        sums = torch.zeros(x.numel(), dtype=x.dtype, device=x.device).index_add(0, index, x.reshape(-1))
        return sums.gather(0, index).reshape(x.shape)
    total = x.sum(dims, keepdim=True) if len(dims) > 0 else x.sum()
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if across_processes:
            return _over_processes(total)
    return total


@torch.jit.unused
def _over_processes(total: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return total
    return sum_over_processes(total.detach(), torch.distributed.group.WORLD)


def _group_of_each(group: Tensor, x: Tensor, separate_dim: Optional[int]) -> Tensor:
    """For each entry of ``x`` the number of its group, from 0 up."""
    if group.is_floating_point() or group.dtype == torch.bool:
        raise TypeError(f"group: expected an integer dtype, got {group.dtype}")
    if group.device != x.device:
        raise ValueError(f"group: expected the device of the data, {x.device}, got {group.device}")
    group = group.long()
    while group.dim() < x.dim():
        group = group.unsqueeze(-1)
    fits = group.dim() == x.dim()
    for i in range(min(group.dim(), x.dim())):
        fits = fits and (group.size(i) == x.size(i) or group.size(i) == 1)
    if not fits:
        raise ValueError(
            f"group: expected the shape of the data, {list(x.shape)}, or of its first dimensions, got {list(group.shape)}"
        )
    index = _dense(group.expand(x.shape).reshape(-1))
    if separate_dim is None:
        return index
    size = x.size(separate_dim)
    shape = [1] * x.dim()
    shape[separate_dim] = size
    entry = torch.arange(size, device=x.device).reshape(shape).expand(x.shape).reshape(-1)
    return _dense(index * size + entry)  # of dense numbers, since the product with any others may overflow


def _dense(group: Tensor) -> Tensor:
    """The same groups, numbered from 0 up. By sorting: torch.unique has as many results as there are groups, which no graph knows."""
    ordered, order = group.sort()
    if group.numel() == 0:
        return group
    begins = torch.cat([torch.zeros_like(ordered[:1]), (ordered[1:] != ordered[:-1]).long()])
    return torch.zeros_like(group).scatter(0, order, begins.cumsum(0))
