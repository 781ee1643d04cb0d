"""What rollouts ask of environments."""

from typing import Any, NamedTuple, Optional, Protocol, Tuple, Union, runtime_checkable

import torch
from torch import Tensor

Observation = Union[Tensor, Tuple[Tensor, ...]]
"""Of ``N`` environments: ``[N, ...]``, or several such."""


class EnvironmentStep(NamedTuple):
    """What ``N`` environments answer to ``N`` actions.

    Attributes:
        observation: what the policy acts on next, ``[N, ...]``; where an episode ended and another began, the first of the new one.
        reward: float32, ``[N]``.
        terminated: bool, ``[N]``: the episode ended.
        truncated: bool, ``[N]``: it was cut short.
        final_observation: the last of the episode where one ended, elsewhere as ``observation``; None says that ``observation`` is
            that everywhere, because a reset takes a step of its own, or no episode ended.
        counted: bool, ``[N]``: False where the step was spent on a reset; None says that all count.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Optional[Observation] = None
    counted: Optional[Tensor] = None


@runtime_checkable
class Environments(Protocol):
    """``N`` environments that are stepped together and reset themselves when an episode ends.

    Those that also have ``state_dict()``, a dict of tensors, and ``load_state_dict(state)``, which returns the observation that was
    acted on next, go on where they were when a run is resumed; others begin new episodes.

    Attributes:
        num_envs: ``N``.
        device: of the tensors that come and go.
        observation_space: gymnasium's description of one environment's observations.
        action_space: and of its actions.
    """

    num_envs: int
    device: torch.device
    observation_space: Any
    action_space: Any

    def reset(self, seed: Optional[int] = None) -> Observation:
        """New episodes everywhere; ``seed`` makes all that follows repeatable."""

    def step(self, action: Tensor) -> EnvironmentStep:
        """One step of every environment. What it returns is the caller's: never written into afterwards."""

    def close(self) -> None:
        """Let go of what they hold."""
