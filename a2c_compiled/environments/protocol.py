"""The interface of environments that rollouts use. In shapes, ``*event`` is the shape of one action."""

from typing import Any, NamedTuple, Optional, Protocol, Tuple, Union, runtime_checkable

import gymnasium
import torch
from torch import Tensor

Observation = Union[Tensor, Tuple[Tensor, ...]]
"""Observations of ``N`` environments: a tensor ``[N, ...]``, or a tuple of such tensors."""


class EnvironmentStep(NamedTuple):
    """Result of one step of ``N`` environments.

    Attributes:
        observation: ``[N, ...]``: the observation for the next action. If the step ended an episode and reset the environment, this is
            the first observation of the new episode.
        reward: ``[N]``, float32. Environments written in torch return the dtype of their physics.
        terminated: ``[N]``, bool: the episode terminated.
        truncated: ``[N]``, bool: the episode was truncated.
        final_observation: the shape of ``observation``: the last observation of the episode if the step ended it, otherwise the entry of
            ``observation``. None: equal to ``observation``, because no episode ended, or because a reset takes a step of its own.
        counted: ``[N]``, bool: False if the step was spent on a reset and belongs to no episode. None: True for all environments.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Optional[Observation] = None
    counted: Optional[Tensor] = None


@runtime_checkable
class Environments(Protocol):
    """Protocol of ``N`` environments that are stepped together and reset themselves when an episode ends.

    Optional methods: ``state_dict()``, which returns a dict of tensors, and ``load_state_dict(state)``, which returns the current
    observation. Environments with both methods continue their episodes when a run is resumed; others begin new episodes.

    Attributes:
        num_envs: ``N``, the number of environments.
        device: device of observations, rewards and flags.
        observation_space: gymnasium's space of one environment's observations.
        action_space: gymnasium's space of one environment's actions.
    """

    num_envs: int
    device: torch.device
    observation_space: Any
    action_space: Any

    def reset(self, seed: Optional[int] = None) -> Observation:
        """Starts a new episode in every environment.

        Args:
            seed: seed that makes the following episodes reproducible; None sets no seed.

        Returns:
            The first observations, ``[N, ...]``, any dtype.
        """

    def step(self, action: Tensor) -> EnvironmentStep:
        """Takes one step in every environment. Later steps do not write to the returned tensors.

        Args:
            action: ``[N, *event]``, dtype as the action space requires.
        """

    def close(self) -> None:
        """Releases resources such as processes and windows."""


def vector_remedy(source: Any) -> str:
    """Returns how to make vector environments of ``source``, for the end of an error message. Empty if that is not known."""
    name = source.spec.id if isinstance(source, gymnasium.Env) and source.spec is not None else source
    if isinstance(name, str):
        return f"; use gymnasium.make_vec({name!r}, 8)"
    single = type(source.unwrapped) if isinstance(source, gymnasium.Env) else source
    if isinstance(single, type) or callable(single):
        return f"; use environments.make_environments({getattr(single, '__name__', 'function')}, 8)"
    return ""
