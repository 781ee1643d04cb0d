"""Indices for ``A2CLoss(shifted=True)``: one sequence holds both the observations and the next observations of a rollout.

TorchScript compiles this file.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from a2c_compiled.functional.packed import sequence_ends


class ShiftedSlots(NamedTuple):
    """Positions (slots) in the sequence on which the critic runs.

    The sequence holds the observations of the included steps, in order. For most steps, the next slot holds the observation of the next
    step, which is also the next observation. A separate slot holds the next observation of a truncated step, of the last step of a packed
    sequence, of a step directly before an excluded step, and of the last step.

    ``source`` has ``T + budget`` entries along time. All other fields have the shape of ``done``: ``[*B]`` with the ``T`` steps along
    ``dim``.
    """

    source: Tensor  # int64: for each slot, the index into the concatenation of the T observations and the T next observations
    observation: Tensor  # int64: slot of the observation of each step
    next_observation: Tensor  # int64: slot of the next observation of each step
    kept: Tensor  # bool: included steps both of whose slots are inside the sequence


def shifted_slots(
    done: Tensor, terminated: Tensor, mask: Optional[Tensor], cu_seqlens: Optional[Tensor], dim: int, budget: int
) -> ShiftedSlots:
    """Assigns the observations and next observations of ``T`` steps to ``T + budget`` slots.

    ``budget`` is the number of extra slots of each trajectory. One extra slot holds the next observation of the last step. Each further one
    holds the next observation of one earlier truncated step, of the last step of a packed sequence, or of a step directly before an
    excluded step. Excluded steps need no slot, nor does the next observation of a terminated step. If a trajectory needs more slots than
    there are, its last steps have no slot.
    """
    length = done.size(dim)
    slots = length + budget if length > 0 else 0
    steps = torch.arange(length, device=done.device)
    shape = [1] * done.dim()
    shape[dim] = length
    steps = steps.reshape(shape).expand(done.shape)
    ends = steps == length - 1
    included = torch.ones_like(done) if mask is None else mask
    if cu_seqlens is not None:
        done = done | sequence_ends(cu_seqlens, done, dim)
    needs_extra_slot = ((done | ~included.roll(-1, dim)) & ~terminated & ~ends & included).long()
    # Each included step takes one slot, and each step with an extra slot moves the observations of all later steps by one more.
    observation = included.long().cumsum(dim) - included.long() + needs_extra_slot.cumsum(dim) - needs_extra_slot
    next_observation = observation + 1
    kept = included & (next_observation < slots)
    # The next observation of the next step: one slot further, or two after an extra slot.
    next_step_kept = (next_observation + needs_extra_slot + 1) < slots
    # Kept steps after which no further step fits, and step T - 1 if it is kept.
    last = kept & (ends | ~next_step_kept)
    # One additional slot receives everything that fits no other slot; narrow() removes the additional slot.
    shape = list(done.shape)
    shape[dim] = slots + 1
    spare = torch.full_like(steps, slots)
    source = torch.zeros(shape, dtype=torch.int64, device=done.device)
    source = source.scatter(dim, torch.where(included, torch.minimum(observation, spare), spare), steps)
    inserted = torch.where(kept & ((needs_extra_slot > 0) | last), next_observation, spare)
    source = source.scatter(dim, inserted, steps + length)
    final = spare - 1  # a valid index for steps that are not kept; their values are not used
    return ShiftedSlots(
        source.narrow(dim, 0, slots), torch.minimum(observation, final), torch.minimum(next_observation, final), kept
    )


def take_steps(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gathers the steps ``index``, ``[*B]``, along ``dim`` of ``tensor``, ``[*B, ...]``, with all entries of the trailing dimensions."""
    shape = list(index.shape) + list(tensor.shape[index.dim() :])
    while index.dim() < tensor.dim():
        index = index.unsqueeze(-1)
    return tensor.gather(dim, index.expand(shape))
