"""Modules that repeat Stable-Baselines3's preprocessing of observations. TorchScript can compile all of them."""

from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from torch import Tensor, nn

from a2c_compiled.networks.for_spaces import OneHot


class Scaled(nn.Module):
    """Converts an observation to float32 and divides it by ``divisor``. The divisor is 255 for images."""

    def __init__(self, divisor: float = 1.0) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, observation: Tensor) -> Tensor:
        """Returns a float32 tensor of the shape of ``observation``."""
        return observation.float() / self.divisor


class Normalized(nn.Module):
    """``VecNormalize`` with a copy of its present statistics: ``clip((x - mean) / sqrt(var + epsilon))``, computed in float64 as in SB3."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, env: VecNormalize) -> None:
        super().__init__()
        statistics: Any = env.obs_rms
        self.clip = float(env.clip_obs)
        self.register_buffer("mean", torch.from_numpy(np.asarray(statistics.mean, np.float64).copy()))
        self.register_buffer("deviation", torch.from_numpy(np.sqrt(np.asarray(statistics.var, np.float64) + env.epsilon)))

    def forward(self, observation: Tensor) -> Tensor:
        """Returns a float32 tensor of the shape of ``observation``."""
        return ((observation.double() - self.mean) / self.deviation).clamp(-self.clip, self.clip).float()


class ChannelsFirst(nn.Module):
    """Transposes images ``[*B, H, W, C]`` to ``[*B, C, H, W]``, with ``*B`` any batch dimensions.

    Images that already have the shape of the model's space are unchanged.
    """

    shape: List[int]

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = list(shape)

    def forward(self, observation: Tensor) -> Tensor:
        """Returns ``observation`` or a view of ``observation``. The networks check the shape of the result."""
        if list(observation.shape[-3:]) == self.shape:
            return observation
        return observation.movedim(-1, -3)


class Wrappers(NamedTuple):
    """The wrappers of a model's environments that a policy repeats.

    Fields:
        normalize: ``VecNormalize`` that normalises observations, or None.
        stack: ``VecFrameStack`` that stacks observations after ``normalize``, or None. Frames that are stacked before the normalisation are
            observations of the environment.
    """

    normalize: Optional[VecNormalize]
    stack: Optional[VecFrameStack]


def wrappers_of(env: Optional[VecEnv]) -> Wrappers:
    """Returns the wrappers of ``env`` that a policy repeats.

    Raises:
        ValueError: a policy cannot repeat the wrappers: two ``VecNormalize`` normalise observations, or between ``VecNormalize`` and the
            model are two ``VecFrameStack``, or another wrapper that changes the observation space.
    """
    outside: List[VecEnvWrapper] = []  # the wrappers between VecNormalize and the model
    normalize = None
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.norm_obs:
            if normalize is not None:
                raise ValueError("model: expected one VecNormalize that normalises observations, got two")
            normalize = env
        elif normalize is None and (isinstance(env, VecFrameStack) or env.observation_space != env.venv.observation_space):
            outside.append(env)
        env = env.venv
    if normalize is None or not outside:
        return Wrappers(normalize, None)
    if len(outside) > 1 or not isinstance(outside[0], VecFrameStack):
        names = ", ".join(type(wrapper).__name__ for wrapper in outside)
        raise ValueError(
            "model: expected at most one VecFrameStack, and no other wrapper that changes the observation space, around VecNormalize,"
            f" got {names} (apply VecNormalize last)"
        )
    return Wrappers(normalize, outside[0])


def environment_to_model(space: spaces.Space, env: Optional[VecNormalize]) -> nn.Sequential:
    """Returns a module that maps an observation of the environment to an observation in the model's ``space``."""
    steps: List[nn.Module] = []
    if is_image_space(space) and space.shape:
        steps.append(ChannelsFirst(space.shape))
    if env is not None and env.norm_obs:
        steps.append(Normalized(env))
    return nn.Sequential(*steps)


def preprocessing(space: spaces.Space, normalize_images: bool) -> nn.Module:
    """Returns a module that maps observations of ``space``, ``[N, *space.shape]``, to the input of a features extractor.

    Raises:
        ValueError: the space is not supported.
    """
    if isinstance(space, spaces.Box):
        return Scaled(255.0 if normalize_images and is_image_space(space) else 1.0)
    if isinstance(space, spaces.MultiBinary):
        return Scaled()
    if isinstance(space, spaces.Discrete):
        return OneHot(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return OneHot(space.nvec.tolist())
    hint = " (a Dict observation is not a single tensor)" if isinstance(space, spaces.Dict) else ""
    raise ValueError(
        f"model: expected a Box, Discrete, MultiBinary or MultiDiscrete (one axis) observation space, got {space}{hint}"
    )
