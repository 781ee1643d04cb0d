"""Modules that repeat Stable-Baselines3's preprocessing of observations. TorchScript can compile all of them."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize, VecTransposeImage
from torch import Tensor, nn

from a2c_compiled._kinds import described
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
    """``VecNormalize`` with a copy of its present statistics: ``clip((x - mean) / sqrt(var + epsilon))``, computed in float64 as in SB3.

    Args:
        env: wrapper with the numbers ``clip_obs`` and ``epsilon``.
        statistics: mean and variance, arrays ``mean`` and ``var``.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, env: VecNormalize, statistics: Any) -> None:
        super().__init__()
        self.clip = float(env.clip_obs)
        mean, variance = (torch.from_numpy(np.array(x, np.float64)) for x in (statistics.mean, statistics.var))
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", (variance + env.epsilon).sqrt())

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

    ``VecTransposeImage`` is repeated by :func:`environment_to_model`. It never transposes normalised images, which are no images to SB3.

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
    if normalize is None or all(isinstance(wrapper, VecTransposeImage) for wrapper in outside):
        return Wrappers(normalize, None)
    if len(outside) > 1 or not isinstance(outside[0], VecFrameStack):
        names = ", ".join(type(wrapper).__name__ for wrapper in outside)
        raise ValueError(
            "model: expected at most one VecFrameStack, and no other wrapper that changes the observation space, around VecNormalize,"
            f" got {names} (apply VecNormalize last)"
        )
    return Wrappers(normalize, outside[0])


def environment_to_model(space: spaces.Space, env: Optional[VecNormalize]) -> nn.Module:
    """Returns a module that maps an observation of the environment to an observation in the model's ``space``.

    For a Dict space, the module maps a mapping of keys to tensors to a tuple of tensors, in the order of the space.
    """
    statistics: Any = env.obs_rms if env is not None and env.norm_obs else None
    if not isinstance(space, spaces.Dict):
        return _tensor_to_model(space, env, statistics)
    normalized = (env.norm_obs_keys or []) if env is not None and statistics is not None else []
    return InOrder(
        {key: _tensor_to_model(part, env, statistics[key] if key in normalized else None) for key, part in space.items()}
    )


def _tensor_to_model(space: spaces.Space, env: Optional[VecNormalize], statistics: Any) -> nn.Sequential:
    """Returns the module of :func:`environment_to_model` for one tensor. ``statistics``: of ``env``, None without normalisation."""
    steps: List[nn.Module] = []
    if is_image_space(space) and space.shape:
        steps.append(ChannelsFirst(space.shape))
    if env is not None and statistics is not None:
        steps.append(Normalized(env, statistics))
    return nn.Sequential(*steps)


class InOrder(nn.Module):
    """Maps a mapping of keys to tensors to a tuple of tensors, each through the module of its key."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.keys = list(modules)
        self.parts = nn.ModuleList(modules.values())

    def forward(self, observation: Mapping[str, Tensor]) -> Tuple[Tensor, ...]:
        """Returns the tensors in the order of the keys.

        Raises:
            TypeError: ``observation`` is not a mapping.
            ValueError: a key is missing or unknown.
        """
        if not isinstance(observation, Mapping):
            raise TypeError(
                f"observation: expected a mapping of {', '.join(self.keys)} to tensors, got {described(observation)}"
            )
        if set(observation) != set(self.keys):
            raise ValueError(f"observation: expected the keys {', '.join(self.keys)}, got {', '.join(map(str, observation))}")
        return tuple(part(observation[key]) for key, part in zip(self.keys, self.parts, strict=True))


def preprocessing(space: spaces.Space, normalize_images: bool) -> nn.Module:
    """Returns a module that maps observations of ``space``, ``[N, *space.shape]``, to the input of a features extractor.

    For a Dict space, the module maps a tuple of tensors, in the order of the space, to a dict.

    Raises:
        ValueError: the space is not supported.
    """
    if isinstance(space, spaces.Dict):
        return ByKey({key: preprocessing(part, normalize_images) for key, part in space.items()})
    if isinstance(space, spaces.Box):
        return Scaled(255.0 if normalize_images and is_image_space(space) else 1.0)
    if isinstance(space, spaces.MultiBinary):
        return Scaled()
    if isinstance(space, spaces.Discrete):
        return OneHot(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return OneHot(space.nvec.tolist())
    raise ValueError(
        f"model: expected a Box, Discrete, MultiBinary or MultiDiscrete (one axis) observation space, or a Dict of them, got {space}"
    )


class ByKey(nn.Module):
    """Maps a tuple of tensors to a dict, each through the module of its key."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.keys = list(modules)
        self.parts = nn.ModuleList(modules.values())

    def forward(self, observation: Tuple[Tensor, ...]) -> Dict[str, Tensor]:
        """Returns the tensors by key."""
        return {key: part(x) for key, part, x in zip(self.keys, self.parts, observation, strict=True)}
