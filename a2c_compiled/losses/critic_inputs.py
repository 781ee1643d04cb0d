"""Prepares the critic's input: concatenates, selects and splits observations.

An observation is a tensor or, except in TorchScript, a tuple of tensors. TorchScript compiles this file.
"""

from typing import List, Tuple

import torch
from torch import Tensor

from a2c_compiled.losses.shifted import take_steps


def concatenate(observation: Tensor, next_observation: Tensor, dim: int) -> Tensor:
    """Concatenates ``observation`` and the result of :func:`replace_nan` along ``dim``."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(concatenate(*pair, dim) for pair in _pairs(observation, next_observation))
    return torch.cat([observation, replace_nan(next_observation, observation)], dim)


def holds_last_alone(observation: Tensor, next_observation: Tensor, dim: int) -> bool:
    """Returns whether ``next_observation`` has one entry along ``dim``, that after the last step, and ``observation`` has more."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return all(holds_last_alone(*pair, dim) for pair in _pairs(observation, next_observation))
    is_long_enough = observation.dim() > dim and next_observation.dim() == observation.dim()
    return is_long_enough and next_observation.size(dim) == 1 and observation.size(dim) > 1


def last_step(observation: Tensor, dim: int) -> Tensor:
    """Returns the last entry of ``observation`` along ``dim``, which keeps size 1."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(last_step(part, dim) for part in observation)
    return observation.narrow(dim, observation.size(dim) - 1, 1)


def following(tensor: Tensor, last: Tensor, dim: int) -> Tensor:
    """Returns the entry of ``tensor`` after each step along ``dim``: those of all steps but the first, then ``last``."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(tensor, tuple):
            return tuple(following(*pair, dim) for pair in _pairs(tensor, last))
    return torch.cat([tensor.narrow(dim, 1, tensor.size(dim) - 1), last], dim)


def replace_nan(next_observation: Tensor, observation: Tensor) -> Tensor:
    """Returns ``next_observation`` with the entries of ``observation`` in place of NaN.

    NaN would reach the critic's gradient even where the value of the next observation is multiplied by 0.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(replace_nan(next_part, part) for part, next_part in _pairs(observation, next_observation))
    if observation.shape != next_observation.shape:
        raise ValueError(
            f"next_observation: expected the shape of observation, {list(observation.shape)}, got {list(next_observation.shape)}"
        )
    if not next_observation.is_floating_point():
        return next_observation
    return torch.where(next_observation.isnan(), observation, next_observation)


@torch.jit.unused
def _pairs(observation: Tuple[Tensor, ...], next_observation: Tuple[Tensor, ...]) -> List[Tuple[Tensor, Tensor]]:
    """Returns the pairs of parts of two tuples. Raises ValueError unless ``next_observation`` is a tuple of the same length."""
    if not isinstance(next_observation, tuple) or len(next_observation) != len(observation):
        got = f"a tuple of {len(next_observation)}" if isinstance(next_observation, tuple) else type(next_observation).__name__
        raise ValueError(f"next_observation: expected a tuple of {len(observation)} tensors like observation, got {got}")
    return list(zip(observation, next_observation, strict=True))


def chunks(observation: Tensor, size: int, count: int) -> List[Tensor]:
    """Splits ``observation`` along the first dimension: into pieces of ``size``, or, if ``size`` is 0, into ``count`` pieces.

    If ``observation`` has fewer than ``count`` entries, each entry is one piece. Without entries, there is one empty piece.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return list(zip(*(chunks(part, size, count) for part in observation), strict=True))
    if size > 0:
        return list(observation.split(size))
    entries = observation.size(0)
    count = max(1, min(count, entries))
    pieces: List[Tensor] = []
    for i in range(count):  # not tensor_split, which torch.compile would recompile for each remainder
        begin, end = i * entries // count, (i + 1) * entries // count
        pieces.append(observation.narrow(0, begin, end - begin))
    return pieces


def take_observations(observation: Tensor, index: Tensor, dim: int) -> Tensor:
    """Applies :func:`take_steps` to ``observation``, or to each tensor of a tuple."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(take_observations(part, index, dim) for part in observation)
    return take_steps(observation, index, dim)
