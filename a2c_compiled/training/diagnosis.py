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
    """Describes the inputs of the gradient that are not finite: parameters and rollout, else network outputs.

    If all are finite, the gradient itself overflows; the description then has the largest parameter and reward.
    """
    bad = [f"parameter {name}" for name, x in loss.named_parameters() if _is_bad(x)]
    bad += [f"{name} in the rollout" for name, x in rollout._asdict().items() if any(map(_is_bad, _tensors(x)))]
    if not bad:
        for name, network in (("actor", loss.actor_network), ("critic", loss.critic_network)):
            bad += [f"output of the {name} network"] if _is_bad(network(rollout.observation)) else []
    if bad:
        return f"not finite: {', '.join(bad)}"
    largest = max((float(x.abs().max()), name) for name, x in loss.named_parameters() if x.numel())
    return (
        "parameters, rollout and network outputs are finite, so the gradient overflows:"
        " lower the learning rate or normalise observations and rewards"
        f" (largest parameter: {largest[0]:.3g} in {largest[1]}; largest reward: {float(rollout.reward.abs().max()):.3g})"
    )


def _is_bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def _tensors(value: object) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, tuple) else []
