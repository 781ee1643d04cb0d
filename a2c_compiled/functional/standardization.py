"""Standardisation over a batch, within groups, and across processes. TorchScript compiles this file, except `sum_over_processes`."""

from typing import List, Optional

import torch
from torch import Tensor

from a2c_compiled._exporting import is_exporting
from a2c_compiled._kinds import check_mask, check_tensor, flag, integer, number_or_tensor
from a2c_compiled._torch_internals import all_reduce_sum
from a2c_compiled.functional.arguments import Coefficient, coefficient


def standardize(
    x: Tensor,
    eps: Coefficient,
    mask: Optional[Tensor] = None,
    group: Optional[Tensor] = None,
    separate_dim: Optional[int] = None,
    across_processes: bool = False,
) -> Tensor:
    r"""Standardises ``x``: subtracts the mean and divides by the standard deviation.

    .. math:: y = (x - \bar x) / \max(\sigma_x, \epsilon)

    :math:`\sigma_x` is the unbiased standard deviation. All sums are float64: equal float32 elements give exactly 0. If only one element
    counts in the whole of ``x``, it stays unchanged. A single element of a group or of an index along ``separate_dim`` gives 0.

    Args:
        x: any shape, floating.
        eps: :math:`\epsilon`, the smallest divisor: a number or a one-element tensor.
        mask: shape of ``x``, bool: elements that enter the mean and the standard deviation. All other elements of the result are 0,
            also where ``x`` is NaN.
        group: shape of ``x`` or of its leading dimensions, integer: elements with the same number form a group. The function standardises
            each group separately.
        separate_dim: the function standardises each index along this dimension separately. None: all elements together.
        across_processes: whether to compute mean and standard deviation over all processes of the default group of
            ``torch.distributed``. If True, all processes must call the function, and no gradient passes through the mean and the standard
            deviation. The option has no effect without an initialised process group and in TorchScript.

    Returns:
        The standardised elements, with the shape and dtype of ``x``.

    Raises:
        ValueError: ``mask`` or ``group`` has a wrong shape or device, ``separate_dim`` is out of range, or both
            ``group`` and ``across_processes`` are given.
        TypeError: ``x`` is not floating, ``group`` is not integer, ``mask`` is not bool, or an argument has a wrong type.

    Source: TorchRL's ``GAE`` with ``average_gae=True``; ``group`` is the entry ``group_key``. With a mask and without groups, TorchRL's
    standard deviation is not unbiased. TorchRL sums in the dtype of ``x``. Stable-Baselines3's PPO leaves a batch of one element unchanged.
    """
    check_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    # In float32, the mean of equal elements can differ from the elements. The result would be this rounding error divided by itself.
    wide = x.double()
    if not torch.jit.is_scripting():
        eps, across_processes = number_or_tensor("eps", eps), flag("across_processes", across_processes)
        if separate_dim is not None and type(separate_dim) is not int:
            separate_dim = integer("separate_dim", separate_dim)
    if separate_dim is not None and (separate_dim < -x.dim() or separate_dim >= x.dim()):
        raise ValueError(f"separate_dim: expected a dimension of a tensor with shape {list(x.shape)}, got {separate_dim}")
    if mask is not None:
        check_mask("mask", mask)
        if mask.shape != x.shape:
            raise ValueError(f"mask: expected the shape of the data, {list(x.shape)}, got {list(mask.shape)}")
        if mask.device != x.device:
            raise ValueError(f"mask: expected the device of the data, {x.device}, got {mask.device}")
        wide = wide.masked_fill(~mask, 0.0)
    index: Optional[Tensor] = None
    if group is not None:
        if across_processes:
            raise ValueError("across_processes: expected False with groups (group numbers differ between processes), got True")
        index = _group_of_each(group, x, separate_dim)
    dims: Optional[List[int]] = None
    if separate_dim is not None:
        dims = []
        for i in range(x.dim()):
            if i != separate_dim % x.dim():
                dims.append(i)
    together = index is None and separate_dim is None
    if together and mask is None and not across_processes and not _is_exporting():
        if x.numel() == 1:
            return x.clone()
        centered = wide - wide.mean()
        variance = centered.square().sum() / max(x.numel() - 1, 1)
        return (centered / _deviation(variance, eps)).to(x.dtype)
    counted = torch.ones_like(wide) if mask is None else mask.to(wide.dtype)
    # A tensor also in exported graphs without a mask: the exporter assumes at least two elements and would drop conditions on a number.
    count = _total(counted, index, dims, across_processes)
    centered = wide - _total(wide, index, dims, across_processes) / count.clamp_min(1.0)
    if mask is not None:
        centered = centered.masked_fill(~mask, 0.0)
    variance = _total(centered.square(), index, dims, across_processes) / (count - 1.0).clamp_min(1.0)
    result = centered / _deviation(variance, eps)
    if together:
        result = torch.where(count == 1.0, wide, result)
    return result.to(x.dtype)


def _deviation(variance: Tensor, eps: Coefficient) -> Tensor:
    """Returns the square root of ``variance``, or ``eps`` where that is larger."""
    # The clamp comes before the square root, because the derivative of sqrt at 0 is infinite.
    if isinstance(eps, Tensor):
        return variance.clamp_min(coefficient("eps", eps, variance).square()).sqrt()
    return variance.clamp_min(float(eps) ** 2).sqrt()


def _is_exporting() -> bool:
    """Returns whether an exporter traces the call. In TorchScript: False."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if is_exporting():
            return True
    return False


def _total(x: Tensor, index: Optional[Tensor], dims: Optional[List[int]], across_processes: bool) -> Tensor:
    """Returns sums that broadcast to ``x``: per group if ``index`` is given, else over ``dims`` (None: over all dimensions)."""
    if index is not None:
        sums = torch.zeros(x.numel(), dtype=x.dtype, device=x.device).index_add(0, index, x.reshape(-1))
        return sums.gather(0, index).reshape(x.shape)
    total = x  # with an empty list, torch would sum over all dimensions
    if dims is None:
        total = x.sum()
    elif len(dims) > 0:
        total = x.sum(dims, keepdim=True)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if across_processes:
            return sum_over_processes(total)
    return total


@torch.jit.unused
def sum_over_processes(total: Tensor) -> Tensor:
    """Returns the sum of ``total`` over all processes, detached. Without a process group, returns ``total`` unchanged."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return total
    return all_reduce_sum(total.detach(), torch.distributed.group.WORLD)


def _group_of_each(group: Tensor, x: Tensor, separate_dim: Optional[int]) -> Tensor:
    """Returns the group number of each element of the flattened ``x``. The numbers are consecutive and begin at 0.

    With ``separate_dim``, each index along this dimension has its own groups. Checks ``group``: raises ValueError or TypeError.
    """
    check_tensor("group", group)
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
    index = _renumbered(group.expand(x.shape).reshape(-1))
    if separate_dim is None:
        return index
    size = x.size(separate_dim)
    shape = [1] * x.dim()
    shape[separate_dim] = size
    separate_index = torch.arange(size, device=x.device).reshape(shape).expand(x.shape).reshape(-1)
    # The numbers in ``index`` are small. A product with the caller's group numbers could overflow.
    return _renumbered(index * size + separate_index)


def _renumbered(group: Tensor) -> Tensor:
    """Renumbers groups with consecutive numbers that begin at 0.

    Sorts instead of calling ``torch.unique``, because a compiled graph does not support an output size that depends on the data.
    """
    ordered, order = group.sort()
    if group.numel() == 0:
        return group
    starts = torch.cat([torch.zeros_like(ordered[:1]), (ordered[1:] != ordered[:-1]).long()])
    return torch.zeros_like(group).scatter(0, order, starts.cumsum(0))
