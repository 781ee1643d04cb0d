"""Indices for ``A2CLoss(shifted=True)``: one sequence holds both the observations and the next observations of a rollout.

TorchScript compiles this file.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from a2c_compiled.functional.packed import sequence_ends


class ShiftedSlots(NamedTuple):
    """Positions (slots) in the sequence on which the critic runs.

    The sequence holds the observations of the steps that count, in order. The slot after the observation of a truncated step, of a step
    before an excluded one, or of the last step, holds the next observation of that step. ``source`` has ``T + budget`` entries along time;
    all other fields have the shape of the flags, ``[*B]``.
    """

    source: Tensor  # int64: for each slot, the index into the concatenation of the T observations and the T next observations
    observation: Tensor  # int64: slot of the observation of each step
    next_observation: Tensor  # int64: slot of the next observation of each step
    kept: Tensor  # bool: steps that count and whose two slots are inside the sequence
    last: Tensor  # bool: the last kept step of each trajectory


def shifted_slots(
    done: Tensor, terminated: Tensor, mask: Optional[Tensor], cu_seqlens: Optional[Tensor], dim: int, budget: int
) -> ShiftedSlots:
    """Assigns the observations and next observations of ``T`` steps to ``T + budget`` slots.

    One extra slot holds the next observation of the last step. Each further extra slot holds the next observation of one earlier truncated
    step, of the last step of a packed sequence, or of a step before an excluded one. The steps that ``mask`` excludes need no slot. If a
    trajectory needs more slots than there are, its last steps have no slot. The next observation of a terminated step needs no slot.
    """
    length = done.size(dim)
    slots = length + budget if length > 0 else 0
    steps = torch.arange(length, device=done.device)
    shape = [1] * done.dim()
    shape[dim] = length
    steps = steps.reshape(shape).expand(done.shape)
    ends = steps == length - 1
    counts = torch.ones_like(done) if mask is None else mask
    if cu_seqlens is not None:
        done = done | sequence_ends(cu_seqlens, done, dim)
    truncated = ((done | ~counts.roll(-1, dim)) & ~terminated & ~ends & counts).long()
    # Each step that counts takes one slot, and each truncated step moves the observations of all later steps by one more.
    observation = counts.long().cumsum(dim) - counts.long() + truncated.cumsum(dim) - truncated
    next_observation = observation + 1
    kept = counts & (next_observation < slots)
    next_step_kept = (next_observation + truncated + 1) < slots
    last = kept & (ends | ~next_step_kept)
    # One additional slot receives everything that fits no other slot; narrow() removes the additional slot.
    shape = list(done.shape)
    shape[dim] = slots + 1
    spare = torch.full_like(steps, slots)
    source = torch.zeros(shape, dtype=torch.int64, device=done.device)
    source = source.scatter(dim, torch.where(counts, torch.minimum(observation, spare), spare), steps)
    inserted = torch.where(kept & ((truncated > 0) | last), next_observation, spare)
    source = source.scatter(dim, inserted, steps + length)
    final = spare - 1
    return ShiftedSlots(
        source.narrow(dim, 0, slots), torch.minimum(observation, final), torch.minimum(next_observation, final), kept, last
    )


def take_steps(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gathers the steps ``index``, ``[*B]``, along ``dim`` of ``tensor``, ``[*B, ...]``, with all entries of the trailing dimensions."""
    shape = list(index.shape) + list(tensor.shape[index.dim() :])
    while index.dim() < tensor.dim():
        index = index.unsqueeze(-1)
    return tensor.gather(dim, index.expand(shape))
