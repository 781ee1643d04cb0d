"""Splits a rollout into minibatches of environments, and combines the results of the minibatches to results of the whole rollout."""

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled.losses import A2CLosses
from a2c_compiled.losses.a2c import LOSSES
from a2c_compiled.update.rollout import Rollout


def split_environments(arguments: Dict[str, Any], dim: int, count: int) -> List[Dict[str, Any]]:
    """Splits tensors, and tuples of tensors, into ``count`` pieces of equal size along ``dim``. None stays None."""

    def piece(entry: Any, i: int) -> Any:
        if isinstance(entry, tuple):
            return tuple(piece(part, i) for part in entry)
        if entry is None:
            return None
        size = entry.size(dim) // count
        return entry.narrow(dim, i * size, size)

    return [{name: piece(entry, i) for name, entry in arguments.items()} for i in range(count)]


def environment_dim(rollout: Rollout, time_dim: int, count: int) -> int:
    """Returns the dimension of the environments: 1 if ``time_dim`` is the first dimension of the reward, else 0.

    Raises:
        ValueError: the reward has one dimension, or ``count`` does not divide the number of environments.
    """
    reward = rollout.reward
    if reward.dim() < 2:
        raise ValueError(
            f"minibatches: expected a reward with a step and an environment dimension, got shape {list(reward.shape)}"
        )
    dim = 1 if time_dim % reward.dim() == 0 else 0
    if reward.size(dim) % count != 0:
        raise ValueError(f"minibatches: expected a number that divides the {reward.size(dim)} environments, got {count}")
    return dim


def step_shares(pieces: Sequence[Dict[str, Any]], dtype: torch.dtype) -> List[Tensor]:
    """Returns each piece's share of all unmasked steps, as a 0-d tensor of ``dtype``."""
    masks = [
        torch.ones_like(piece["advantage"], dtype=torch.bool) if piece["mask"] is None else piece["mask"] for piece in pieces
    ]
    counts = torch.stack([mask.sum() for mask in masks]).to(dtype)
    return list((counts / counts.sum().clamp_min(1)).unbind())


def weighted_sum(terms: Sequence[Optional[Tensor]], weights: Optional[Sequence[Tensor]] = None) -> Optional[Tensor]:
    """Sums the terms that are not None, each multiplied with its weight. ``weights=None``: all weights are 1.

    Returns None if every term is None.
    """
    total: Optional[Tensor] = None
    for i, term in enumerate(terms):
        if term is not None:
            term = term if weights is None else term * weights[i].to(term.dtype)
            total = term if total is None else total + term
    return total


def combined_losses(parts: Sequence[A2CLosses], weights: Sequence[Tensor], reduction: str) -> A2CLosses:
    """Combines the outputs of the pieces: averages them with ``weights``. With ``reduction="sum"``, sums the losses instead."""
    entries = zip(A2CLosses._fields, zip(*parts, strict=True), strict=True)
    return A2CLosses(
        *(weighted_sum(terms, None if reduction == "sum" and name in LOSSES else weights) for name, terms in entries)
    )
