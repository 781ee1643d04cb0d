"""The networks and the distribution that fit the spaces of an environment."""

import math
from typing import Any, Optional, Sequence, Tuple, TypeVar, Union

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from a2c_compiled.distributions import Bernoulli, Beta, Categorical, Distribution, MultiCategorical, Normal
from a2c_compiled.environments.protocol import Environments
from a2c_compiled.networks.observation_norm import ObservationNorm

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def make_networks(
    envs: Environments, hidden: Sequence[int], normalize_observations: bool = False
) -> Tuple[nn.Module, nn.Module, Distribution]:
    """Actor, critic and distribution for the spaces of ``envs``: tanh MLPs, orthogonally initialised.

    What stands in front of the MLPs is shared by both: an :class:`ImageEncoder` for images, one-hot vectors for choices,
    :class:`ManyInputs` for observations of several parts, and, where asked for, an :class:`ObservationNorm` for each vector.

    Raises:
        ValueError: the spaces are of a kind that has no network or distribution here.
    """
    front, width = encoder_for(envs.observation_space, normalize_observations)
    distribution = distribution_for(envs.action_space)
    actor, critic = mlp(width, hidden, distribution.num_params, 0.01), mlp(width, hidden, 1, 1.0)
    if front is None:
        return actor, critic, distribution
    return nn.Sequential(front, *actor), nn.Sequential(front, *critic), distribution


def encoder_for(space: gymnasium.Space[Any], normalize: bool = False) -> Tuple[Optional[nn.Module], int]:
    """What makes vectors of the observations of ``space``, ``[..., *space.shape]``, and their width; None where they are vectors.

    Raises:
        ValueError: there is none for this kind.
    """
    if isinstance(space, (gymnasium.spaces.Tuple, gymnasium.spaces.Dict)) and len(space.spaces) > 0:
        inner = list(space.spaces.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces)
        encoders, widths = zip(*(_part_encoder(one, normalize, part) for part, one in enumerate(inner)), strict=True)
        return ManyInputs([nn.Identity() if encoder is None else encoder for encoder in encoders]), sum(widths)
    return _part_encoder(space, normalize, None)


def _part_encoder(space: gymnasium.Space[Any], normalize: bool, part: Optional[int]) -> Tuple[Optional[nn.Module], int]:
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return OneHot(int(space.n), int(space.start)), int(space.n)
    if isinstance(space, spaces.Box) and 1 <= len(space.shape) <= 4 and min(space.shape) > 0:
        if len(space.shape) > 2 or (len(space.shape) == 2 and space.dtype in (np.uint8, np.bool_)):
            encoder = ImageEncoder(space.shape, 1.0 / 255.0 if space.dtype == np.uint8 else 1.0)
            return encoder, encoder.width
        if space.dtype in (np.float32, np.float64):
            layers: list[nn.Module] = [ObservationNorm(space.shape, part=part)] if normalize else []
            layers += [nn.Flatten(-2)] if len(space.shape) == 2 else []
            width = math.prod(space.shape)
            return (nn.Sequential(*layers) if len(layers) > 1 else layers[0] if layers else None), width
    raise ValueError(
        f"env: expected observations that are vectors of float32 or float64, images, choices, or a tuple or dict of these, got {space}"
    )


class OneHot(nn.Module):
    """A choice of ``n``, ``[...]``, counted from ``start``, as a float32 vector ``[..., n]``.

    Of several choices, ``n`` has the number of each: ``[..., len(n)]`` to ``[..., sum(n)]``, their vectors side by side.
    """

    def __init__(self, n: Union[int, Sequence[int]], start: int = 0) -> None:
        super().__init__()
        self.is_single = isinstance(n, int)
        self.sizes = [n] if isinstance(n, int) else list(n)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        """The vectors."""
        choices = x.long() - self.start
        if self.is_single:
            return nn.functional.one_hot(choices, self.sizes[0]).float()
        return torch.cat([nn.functional.one_hot(choices[..., i], n) for i, n in enumerate(self.sizes)], -1).float()


class ImageEncoder(nn.Module):
    """Convolutions and a linear layer, with ReLUs, over images ``[..., H, W, C]``, ``[..., H, W]``, or stacked ``[..., K, H, W (, C)]``.

    Images of 36 pixels and more take the three convolutions of the Nature DQN and 512 features, smaller ones a single convolution of 3 x 3
    and 128 features, as MinAtar's.

    Args:
        shape: of one observation; of three dimensions, the smaller of the first and the last is that of the channels.
        scale: what pixels are multiplied by.

    Attributes:
        width: how many features come out.

    Raises:
        ValueError: the images are too small.

    Source: Mnih et al., Human-level control through deep reinforcement learning, 2015; Young and Tian, MinAtar, 2019.
    """

    def __init__(self, shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.dims = len(shape)
        self.channels_first = len(shape) == 3 and shape[0] < shape[-1]
        self.scale = scale
        channels, height, side = _image_sizes(shape, self.channels_first)
        if min(height, side) < 3:
            raise ValueError(f"env: expected images of at least 3 x 3, got observations of shape {list(shape)}")
        large = min(height, side) >= 36
        kernels = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 3, 1)]
        layers: list[nn.Module] = []
        for outputs, size, stride in kernels:
            layers += [_orthogonal(nn.Conv2d(channels, outputs, size, stride), math.sqrt(2.0)), nn.ReLU()]
            channels, height, side = outputs, (height - size) // stride + 1, (side - size) // stride + 1
        self.convolutions = nn.Sequential(*layers)
        self.width = 512 if large else 128
        self.linear = _orthogonal(nn.Linear(channels * height * side, self.width), math.sqrt(2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Features, ``[..., width]``."""
        lead = x.shape[: x.dim() - self.dims]
        x = x.unsqueeze(0).flatten(0, -self.dims - 1)
        if self.dims == 2:
            x = x.unsqueeze(1)
        elif self.dims == 4:
            x = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        elif not self.channels_first:
            x = x.permute(0, 3, 1, 2)
        x = x.to(self.linear.weight.dtype) * self.scale
        x = self.linear(self.convolutions(x).flatten(1)).relu()
        return x.reshape(lead + x.shape[-1:])


def _image_sizes(shape: Sequence[int], channels_first: bool) -> Tuple[int, int, int]:
    """Channels, height and width."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 4:
        return shape[0] * shape[3], shape[1], shape[2]
    return (shape[0], shape[1], shape[2]) if channels_first else (shape[2], shape[0], shape[1])


class ManyInputs(nn.Module):
    """Observations of several parts, a tuple of ``[..., *shape]``, each through its own encoder, as one vector ``[..., width]``."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, observation: Tuple[Tensor, ...]) -> Tensor:
        """The vectors side by side."""
        if not isinstance(observation, tuple) or len(observation) != len(self.encoders):
            came = f"{len(observation)}" if isinstance(observation, tuple) else type(observation).__name__
            raise ValueError(f"observation: expected a tuple of {len(self.encoders)} parts, got {came}")
        return torch.cat([encoder(part) for encoder, part in zip(self.encoders, observation, strict=True)], -1)


def distribution_for(actions: gymnasium.Space[Any]) -> Distribution:
    """Categorical for a choice, MultiCategorical for several, Bernoulli for vectors of yes and no, Beta for bounded and Normal for
    unbounded vectors of numbers.

    Not TanhNormal: nothing holds its location back once tanh has saturated, where its density has enormous gradients.
    """
    choices = choices_for(actions)
    if choices is not None and not np.any(getattr(actions, "start", 0)):
        return choices
    if isinstance(actions, gymnasium.spaces.Box) and len(actions.shape) == 1:
        if actions.is_bounded("both"):
            return Beta(actions.shape[0], actions.low.tolist(), actions.high.tolist())
        return Normal(actions.shape[0])
    raise ValueError(f"env: expected actions that are choices counted from 0 or vectors, got {actions}")


def choices_for(actions: gymnasium.Space[Any]) -> Optional[Distribution]:
    """The distribution of choices that are counted from 0, wherever those of ``actions`` begin; None where it has no choices."""
    spaces = gymnasium.spaces
    if isinstance(actions, spaces.Discrete):
        return Categorical(int(actions.n))
    if isinstance(actions, spaces.MultiDiscrete) and actions.nvec.ndim == 1:
        return MultiCategorical(actions.nvec.tolist())
    if isinstance(actions, spaces.MultiBinary) and len(actions.shape) == 1:
        return Bernoulli(actions.shape[0])
    return None


def mlp(inputs: int, hidden: Sequence[int], outputs: int, output_gain: float) -> nn.Sequential:
    """Tanh layers of the ``hidden`` widths and a linear output; weights orthogonal, biases zero."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [_orthogonal(nn.Linear(inputs, width), math.sqrt(2.0)), nn.Tanh()]
        inputs = width
    return nn.Sequential(*layers, _orthogonal(nn.Linear(inputs, outputs), output_gain))


def _orthogonal(layer: Layer, gain: float) -> Layer:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
