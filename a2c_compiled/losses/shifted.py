"""The values of observations and next observations from one sequence that is little longer than the rollout. TorchScript."""

from typing import NamedTuple

import torch
from torch import Tensor


class ShiftedSlots(NamedTuple):
    """Where in the sequence what is to be found; all but ``source`` are of the shape of the rollout's flags.

    The sequence holds the observations in order, and behind each step that was cut short, and behind the last, its next observation.
    """

    source: Tensor  # of each slot: its place among the observations followed by the next observations
    observation: Tensor  # slots of the observations
    next_observation: Tensor  # slots of the next observations
    kept: Tensor  # bool: steps that found room
    last: Tensor  # bool: the last of these


def shifted_slots(done: Tensor, terminated: Tensor, dim: int, budget: int) -> ShiftedSlots:
    """How ``T + budget`` slots serve ``T`` steps: one slot is the end's, each further one serves a step that was cut short before it.

    Where a trajectory has more of these, its last steps find no room. Not needed is the next observation of a terminated step.
    """
    length = done.size(dim)
    slots = length + budget if length > 0 else 0
    steps = torch.arange(length, device=done.device)
    shape = [1] * done.dim()
    shape[dim] = length
    steps = steps.reshape(shape).expand(done.shape)
    ends = steps == length - 1
    cut_short = (done & ~terminated & ~ends).long()
    observation = steps + cut_short.cumsum(dim) - cut_short
    next_observation = observation + 1
    kept = next_observation < slots
    later_kept = (next_observation + cut_short + 1) < slots  # where the next step's next observation lies
    last = kept & (ends | ~later_kept)
    # One slot more, for all that has no room.
    shape = list(done.shape)
    shape[dim] = slots + 1
    spare = torch.full_like(steps, slots)
    source = torch.zeros(shape, dtype=torch.int64, device=done.device)
    source = source.scatter(dim, torch.minimum(observation, spare), steps)
    inserted = torch.where(kept & ((cut_short > 0) | last), next_observation, spare)
    source = source.scatter(dim, inserted, steps + length)
    final = spare - 1
    return ShiftedSlots(
        source.narrow(dim, 0, slots), torch.minimum(observation, final), torch.minimum(next_observation, final), kept, last
    )


def take_steps(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Along ``dim`` of ``tensor`` the steps that ``index`` names; what comes after the dimensions of ``index`` is taken whole."""
    shape = list(index.shape) + list(tensor.shape[index.dim() :])
    while index.dim() < tensor.dim():
        index = index.unsqueeze(-1)
    return tensor.gather(dim, index.expand(shape))
