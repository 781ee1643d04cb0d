"""Finds the cause of gradients that are not finite."""

from typing import List

import torch
from torch import Tensor

from a2c_compiled.losses import A2CLoss
from a2c_compiled.update.rollout import Rollout


class TrainingDivergedError(RuntimeError):
    """Many successive training steps were skipped because their gradients were not finite."""


@torch.no_grad()
def diagnose(loss: A2CLoss, rollout: Rollout) -> str:
    """Describes which inputs of the gradient are not finite: parameters and rollout entries, or if these are finite, network outputs.

    If all of them are finite, the gradient itself overflows. The description then has the largest magnitudes of parameters and rewards.
    """
    nonfinite = [f"parameter {name}" for name, x in loss.named_parameters() if _is_nonfinite(x)]
    nonfinite += [f"{name} in the rollout" for name, x in rollout._asdict().items() if any(map(_is_nonfinite, _tensors(x)))]
    if not nonfinite:
        for name, network in (("actor", loss.actor_network), ("critic", loss.critic_network)):
            if _is_nonfinite(network(rollout.observation)):
                nonfinite.append(f"output of the {name} network")
    if nonfinite:
        return f"not finite: {', '.join(nonfinite)}"
    largest = max((float(x.abs().max()), name) for name, x in loss.named_parameters() if x.numel())
    return (
        "parameters, rollout and network outputs are finite, so the gradient overflows:"
        " lower the learning rate or normalise observations and rewards"
        f" (largest parameter: {largest[0]:.3g} in {largest[1]}; largest reward: {float(rollout.reward.abs().max()):.3g})"
    )


def _is_nonfinite(tensor: Tensor) -> bool:
    """Returns whether a floating-point tensor contains NaN or infinity."""
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def _tensors(value: object) -> List[Tensor]:
    """Returns the tensors in ``value``: a tensor, a nested tuple of tensors, or None."""
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, tuple) else []
