"""Splits a rollout into minibatches of environments, and combines the results of the minibatches to results of the whole rollout."""

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled.estimators import ValueEstimator
from a2c_compiled.losses import A2CLosses
from a2c_compiled.losses.a2c import LOSSES
from a2c_compiled.losses.batch import time_and_agent_dims


def split_environments(arguments: Dict[str, Any], dim: int, count: int) -> List[Dict[str, Any]]:
    """Splits tensors, and tuples of tensors, into ``count`` pieces of equal size along ``dim``. None stays None.

    Raises ValueError if ``count`` does not divide the number of environments, the size of the advantage.
    """
    environments = arguments["advantage"].size(dim)
    if environments % count != 0:
        raise ValueError(f"minibatches: expected a number that divides the {environments} environments, got {count}")

    def piece(entry: Any, i: int) -> Any:
        if isinstance(entry, tuple):
            return tuple(piece(part, i) for part in entry)
        if entry is None:
            return None
        size = entry.size(dim) // count
        return entry.narrow(dim, i * size, size)

    return [{name: piece(entry, i) for name, entry in arguments.items()} for i in range(count)]


def environment_dim(estimator: ValueEstimator, reward: Tensor, log_prob: Tensor) -> int:
    """Returns the dimension of the environments: the first one that is neither the dimension of time nor that of agents.

    ``reward`` and ``log_prob``: as the loss reads them; only their shapes are used. Raises ValueError if there is no such dimension.
    """
    steps = log_prob if estimator.several_agents else reward
    taken = time_and_agent_dims(estimator, reward, log_prob)
    dim = min(i for i in range(3) if i not in taken)
    if dim >= steps.dim():
        raise ValueError(
            f"minibatches: expected a reward with a step and an environment dimension, got shape {list(reward.shape)}"
        )
    return dim


def step_shares(pieces: Sequence[Dict[str, Any]], entry: str, dtype: torch.dtype) -> List[Tensor]:
    """Returns each piece's share of all unmasked steps of ``entry``, as a 0-d tensor of ``dtype``.

    ``entry``: ``"advantage"``, or ``"value_target"``, where one entry may serve several agents: it counts if any agent's step does.
    """
    counts = torch.stack([_mask_of(piece[entry], piece["mask"]).sum() for piece in pieces]).to(dtype)
    return list((counts / counts.sum().clamp_min(1)).unbind())


def _mask_of(tensor: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Returns ``mask`` in the shape of ``tensor``, which may have size 1 in the dimension of agents. None: all True."""
    if mask is None:
        return torch.ones_like(tensor, dtype=torch.bool)
    for i in range(mask.dim()):
        mask = mask.any(i, keepdim=True) if tensor.size(i) != mask.size(i) else mask
    return mask


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
