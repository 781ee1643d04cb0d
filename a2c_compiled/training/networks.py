"""The networks and the distribution that fit the spaces of an environment."""

import math
from typing import Any, Sequence, Tuple

import gymnasium
import numpy as np
from torch import nn

from a2c_compiled.distributions import Bernoulli, Categorical, Distribution, MultiCategorical, Normal, TanhNormal
from a2c_compiled.training.environments.protocol import Environments


def make_networks(envs: Environments, hidden: Sequence[int]) -> Tuple[nn.Module, nn.Module, Distribution]:
    """Actor, critic and distribution for the spaces of ``envs``: tanh MLPs, orthogonally initialised.

    Raises:
        ValueError: the spaces are of a kind that has no network or distribution here.
    """
    observations, actions = envs.observation_space, envs.action_space
    shape = observations.shape if observations.dtype in (np.float32, np.float64) else None
    if not isinstance(observations, gymnasium.spaces.Box) or shape is None or len(shape) != 1:
        raise ValueError(f"env: expected observations that are vectors of float32 or float64, got {observations}")
    distribution = distribution_for(actions)
    width = shape[0]
    return mlp(width, hidden, distribution.num_params, 0.01), mlp(width, hidden, 1, 1.0), distribution


def distribution_for(actions: gymnasium.Space[Any]) -> Distribution:
    """Categorical for a choice, MultiCategorical for several, Bernoulli for vectors of yes and no, TanhNormal for bounded and Normal
    for unbounded vectors of numbers."""
    spaces = gymnasium.spaces
    if isinstance(actions, spaces.Discrete) and actions.start == 0:
        return Categorical(int(actions.n))
    if isinstance(actions, spaces.MultiDiscrete) and actions.nvec.ndim == 1 and not actions.start.any():
        return MultiCategorical(actions.nvec.tolist())
    if isinstance(actions, spaces.MultiBinary) and len(actions.shape) == 1:
        return Bernoulli(actions.shape[0])
    if isinstance(actions, spaces.Box) and len(actions.shape) == 1:
        if actions.is_bounded("both"):
            return TanhNormal(actions.shape[0], actions.low.tolist(), actions.high.tolist())
        return Normal(actions.shape[0])
    raise ValueError(f"env: expected actions that are choices counted from 0 or vectors, got {actions}")


def mlp(inputs: int, hidden: Sequence[int], outputs: int, output_gain: float) -> nn.Sequential:
    """Tanh layers of the ``hidden`` widths and a linear output; weights orthogonal, biases zero."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [_linear(inputs, width, math.sqrt(2.0)), nn.Tanh()]
        inputs = width
    return nn.Sequential(*layers, _linear(inputs, outputs, output_gain))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear
