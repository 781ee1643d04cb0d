"""A rollout in pieces of fewer environments, whose gradients add up to that of the whole."""

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled.losses import A2CLosses
from a2c_compiled.losses.a2c import LOSSES
from a2c_compiled.update.rollout import Rollout


def cut(arguments: Dict[str, Any], dim: int, count: int) -> List[Dict[str, Any]]:
    """Tensors, and tuples of tensors, in ``count`` equal pieces along ``dim``."""

    def piece(entry: Any, i: int) -> Any:
        if isinstance(entry, tuple):
            return tuple(piece(part, i) for part in entry)
        if entry is None:
            return None
        size = entry.size(dim) // count
        return entry.narrow(dim, i * size, size)

    return [{name: piece(entry, i) for name, entry in arguments.items()} for i in range(count)]


def environment_dim(rollout: Rollout, time_dim: int, count: int) -> int:
    """Which of the first two dimensions is not time.

    Raises:
        ValueError: it cannot be cut into ``count`` pieces of one size.
    """
    reward = rollout.reward
    if reward.dim() < 2:
        raise ValueError(f"minibatches: expected rewards of steps and environments to cut, got shape {list(reward.shape)}")
    dim = 1 if time_dim % reward.dim() == 0 else 0
    if reward.size(dim) % count != 0:
        raise ValueError(f"minibatches: expected a number that divides the {reward.size(dim)} environments, got {count}")
    return dim


def shares(pieces: Sequence[Dict[str, Any]], dtype: torch.dtype) -> List[Tensor]:
    """Of the steps that count, what share each piece has."""
    masks = [torch.ones_like(piece["advantage"]) if piece["mask"] is None else piece["mask"] for piece in pieces]
    counts = torch.stack([mask.sum() for mask in masks]).to(dtype)
    return list((counts / counts.sum().clamp_min(1)).unbind())


def added(terms: Sequence[Optional[Tensor]], weights: Optional[Sequence[Tensor]] = None) -> Optional[Tensor]:
    """The sum, weighted if asked for, of what is there; None where nothing is."""
    total: Optional[Tensor] = None
    for i, term in enumerate(terms):
        if term is not None:
            term = term if weights is None else term * weights[i].to(term.dtype)
            total = term if total is None else total + term
    return total


def combined(parts: Sequence[A2CLosses], weights: Sequence[Tensor], reduction: str) -> A2CLosses:
    """The losses of the whole from those of its pieces."""
    entries = zip(A2CLosses._fields, zip(*parts, strict=True), strict=True)
    return A2CLosses(*(added(terms, None if reduction == "sum" and name in LOSSES else weights) for name, terms in entries))
