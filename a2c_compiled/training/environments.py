"""Gymnasium's vector environments, and the networks and distribution that fit their spaces."""

import importlib
import math
from typing import Any, Sequence, Tuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from a2c_compiled.distributions import Bernoulli, Categorical, Distribution, MultiCategorical, Normal, TanhNormal


def make_environments(env_id: str, num_envs: int) -> VectorEnv:
    """``num_envs`` copies side by side: gymnasium's own vectorised version where there is one, else one after the other.

    ``"module:Name-v0"`` is ``"Name-v0"`` once ``module`` is imported, as everywhere in gymnasium.

    Raises:
        ValueError: gymnasium knows no such environment, or cannot make it here.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if gymnasium.spec(name).vector_entry_point is not None:
            return gymnasium.make_vec(env_id, num_envs)
        # SAME_STEP wastes no step on the reset and hands the real final observation over beside the new one.
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync", vector_kwargs=kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"env: expected an environment that gymnasium can make here, got {env_id!r} ({error})") from error


def observation_tensor(observation: np.ndarray) -> Tensor:
    """A copy, since environments may write into what they returned; float64 observations as float32, the rest as it is."""
    return torch.from_numpy(np.array(observation, dtype=np.float32 if observation.dtype == np.float64 else None))


def make_networks(envs: VectorEnv, hidden: Sequence[int]) -> Tuple[nn.Module, nn.Module, Distribution]:
    """Actor, critic and distribution for the spaces of ``envs``: tanh MLPs, orthogonally initialised.

    Raises:
        ValueError: the spaces are of a kind that has no network or distribution here.
    """
    observations, actions = envs.single_observation_space, envs.single_action_space
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
