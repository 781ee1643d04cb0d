"""What the loss makes of its inputs before it computes: one shape, one pass, nothing unknown. All of it is TorchScript."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor


def concatenate(observation: Tensor, next_observation: Tensor, dim: int) -> Tensor:
    """Both one after the other along ``dim``; tuples part by part."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(concatenate(*pair, dim) for pair in _pairs(observation, next_observation))
    return torch.cat([observation, known(next_observation, observation)], dim)


def known(next_observation: Tensor, observation: Tensor) -> Tensor:
    """``next_observation``, or where that is NaN, ``observation``: NaN would reach the critic's gradient even behind a zero."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(known(next_part, part) for part, next_part in _pairs(observation, next_observation))
    if observation.shape != next_observation.shape:
        raise ValueError(
            f"next_observation: expected the shape of observation, {list(observation.shape)}, got {list(next_observation.shape)}"
        )
    if not next_observation.is_floating_point():
        return next_observation
    return torch.where(next_observation.isnan(), observation, next_observation)


@torch.jit.unused
def _pairs(observation: Tuple[Tensor, ...], next_observation: Tuple[Tensor, ...]) -> List[Tuple[Tensor, Tensor]]:
    if not isinstance(next_observation, tuple) or len(next_observation) != len(observation):
        raise ValueError(f"next_observation: expected a tuple of {len(observation)} tensors, as observation is")
    return list(zip(observation, next_observation, strict=True))


def chunks(observation: Tensor, size: int, count: int) -> List[Tensor]:
    """``observation`` cut along its first dimension: into pieces of ``size``, or where that is 0, into ``count`` that are not empty."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return list(zip(*(chunks(part, size, count) for part in observation), strict=True))
    if size > 0:
        return list(observation.split(size))
    entries = observation.size(0)
    count = max(1, min(count, entries))
    pieces: List[Tensor] = []
    for i in range(count):  # tensor_split compiles anew for each remainder
        begin, end = i * entries // count, (i + 1) * entries // count
        pieces.append(observation.narrow(0, begin, end - begin))
    return pieces


def finite(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """``tensor``, 0 where it is not finite and ``mask`` says that the step does not count."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(tensor, tuple):
            return tuple(finite(name, part, mask) for part in tensor)
    if not tensor.is_floating_point():
        return tensor
    counts = mask.squeeze(-1) if mask.dim() > tensor.dim() else mask
    for i in range(counts.dim()):
        if tensor.size(i) == 1 and counts.size(i) > 1:  # a team's: it counts where one of the agents does
            counts = counts.any(i, keepdim=True)
        if counts.size(i) != tensor.size(i) and counts.size(i) != 1:
            raise ValueError(f"mask: expected the leading dimensions of {name}, {list(tensor.shape)}, got {list(mask.shape)}")
    while counts.dim() < tensor.dim():
        counts = counts.unsqueeze(-1)
    return tensor.masked_fill(~(counts | tensor.isfinite()), 0.0)


def optional_finite(name: str, tensor: Optional[Tensor], mask: Tensor) -> Optional[Tensor]:
    """:func:`finite`, and None for None."""
    return None if tensor is None else finite(name, tensor, mask)


def like(tensor: Tensor, reference: Tensor) -> Tensor:
    """``tensor`` with or without a last dimension of 1, as ``reference`` has it."""
    if tensor.dim() == reference.dim() + 1 and tensor.size(-1) == 1:
        return tensor.squeeze(-1)
    if tensor.dim() + 1 == reference.dim() and reference.size(-1) == 1:
        return tensor.unsqueeze(-1)
    return tensor


def optional_like(tensor: Optional[Tensor], reference: Tensor) -> Optional[Tensor]:
    """:func:`like`, and None for None."""
    return None if tensor is None else like(tensor, reference)


def check_values(values: Tensor, reference: Tensor, whose: str) -> None:
    """Raise ValueError unless the critic's values have the shape of ``reference`` (that of ``whose``), give or take a last 1."""
    if like(values, reference).shape != reference.shape:
        raise ValueError(
            f"critic_network: expected values of the shape of {whose}, {list(reference.shape)}, with or without a last dimension of 1,"
            f" got {list(values.shape)}"
        )
