"""Builds actor, critic and action distribution for the observation and action spaces of an environment."""

import math
from typing import Any, Optional, Sequence, Tuple, TypeVar, Union

import torch
from torch import Tensor, nn

from a2c_compiled._environment_action import check_action_space
from a2c_compiled._extras import needs
from a2c_compiled._kinds import described
from a2c_compiled.distributions import Bernoulli, Beta, Categorical, Distribution, MultiCategorical, Normal
from a2c_compiled.environments.protocol import Environments, vector_remedy
from a2c_compiled.networks.observation_norm import ObservationNorm

with needs(__name__, "train"):
    import gymnasium
    import numpy as np

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def make_networks(
    envs: Union[gymnasium.vector.VectorEnv, Environments], hidden: Sequence[int], normalize_observations: bool = False
) -> Tuple[nn.Module, nn.Module, Distribution]:
    """Builds actor, critic and distribution for the spaces of ``envs``.

    Each network is an encoder, which both share, and a tanh MLP with orthogonal initial weights. The encoder of an observation is:

    * image: :class:`ImageEncoder`
    * discrete: :class:`OneHot`
    * tuple or dict: :class:`TupleEncoder`, with an encoder for each entry
    * vector: :class:`ObservationNorm` if ``normalize_observations``, otherwise none

    Args:
        envs: the environments. Of a gymnasium vector environment, the spaces of one environment count, such as
            ``single_observation_space``.
        hidden: widths of the hidden layers of each MLP.
        normalize_observations: whether an :class:`ObservationNorm` normalises each vector observation.

    Returns:
        The actor network, the critic network and the distribution. The networks map an observation to ``[..., num_params]`` and
        ``[..., 1]``. An observation is ``[..., *space.shape]``, or for a Tuple or Dict space a tuple of such tensors.

    Raises:
        ValueError: there is no network for the observation space, or no distribution for the action space.
        TypeError: ``envs`` has no spaces.
    """
    prefix = "single_" if isinstance(envs, gymnasium.vector.VectorEnv) else ""
    observations, actions = (getattr(envs, f"{prefix}{name}_space", None) for name in ("observation", "action"))
    if observations is None or actions is None:
        raise TypeError(
            f"envs: expected a gymnasium VectorEnv or Environments, which have spaces, got {described(envs)}{vector_remedy(envs)}"
        )
    encoder, width = encoder_for(observations, normalize_observations)
    distribution = distribution_for(actions)
    # With a small gain, the first actions hardly depend on the observation.
    actor = mlp(width, hidden, distribution.num_params, output_gain=0.01)
    critic = mlp(width, hidden, 1, output_gain=1.0)
    if encoder is None:
        return actor, critic, distribution
    return nn.Sequential(encoder, *actor), nn.Sequential(encoder, *critic), distribution


def encoder_for(space: gymnasium.Space[Any], normalize: bool = False) -> Tuple[Optional[nn.Module], int]:
    """Builds the layers that map observations of ``space`` to vectors ``[..., width]``.

    An observation is ``[..., *space.shape]``, or for a Tuple or Dict space a tuple of such tensors.

    A Box with three or four dimensions holds images. A Box with two dimensions holds images if it is uint8 or bool; if it is float32 or
    float64, it is flattened to a vector.

    Args:
        space: observation space of one environment.
        normalize: whether to normalise vectors with an :class:`ObservationNorm`.

    Returns:
        ``(encoder, width)``. ``encoder`` is None if observations are vectors that need no layer.

    Raises:
        ValueError: the space is not a vector (float32 or float64), an image, discrete, or a Tuple or Dict of these.
    """
    if isinstance(space, (gymnasium.spaces.Tuple, gymnasium.spaces.Dict)) and len(space.spaces) > 0:
        inner = list(space.spaces.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces)
        encoders, widths = zip(
            *(_part_encoder(part_space, normalize, part) for part, part_space in enumerate(inner)), strict=True
        )
        return TupleEncoder([nn.Identity() if encoder is None else encoder for encoder in encoders]), sum(widths)
    return _part_encoder(space, normalize, None)


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Returns whether :func:`encoder_for` builds convolutions for ``space``, which is not a Tuple or Dict."""
    if not isinstance(space, gymnasium.spaces.Box):
        return False
    return len(space.shape) > 2 or (len(space.shape) == 2 and space.dtype in (np.uint8, np.bool_))


def _part_encoder(space: gymnasium.Space[Any], normalize: bool, part: Optional[int]) -> Tuple[Optional[nn.Module], int]:
    """As :func:`encoder_for`, for a space that is not a Tuple or Dict. ``part`` is its index in its Tuple or Dict, or None."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return OneHot(int(space.n), int(space.start)), int(space.n)
    if isinstance(space, spaces.Box) and 1 <= len(space.shape) <= 4 and min(space.shape) > 0:
        if is_image(space):
            encoder = ImageEncoder(space.shape, 1.0 / 255.0 if space.dtype == np.uint8 else 1.0)
            return encoder, encoder.width
        if space.dtype in (np.float32, np.float64):
            layers: list[nn.Module] = []
            if normalize:
                layers.append(ObservationNorm(space.shape, part=part))
            if len(space.shape) == 2:
                layers.append(nn.Flatten(-2))
            width = math.prod(space.shape)
            if len(layers) > 1:
                return nn.Sequential(*layers), width
            return layers[0] if layers else None, width
    raise ValueError(
        "observation_space: expected float32 or float64 vectors, images, a Discrete space, or a Tuple or Dict of these,"
        f" got {space}"
    )


class OneHot(nn.Module):
    """Maps integers to one-hot vectors, float32.

    If ``n`` is an integer: ``[...]`` to ``[..., n]``. If ``n`` is a sequence, the last dimension of the input holds ``len(n)`` integers.
    Each becomes a one-hot vector, and the vectors are concatenated: ``[..., len(n)]`` to ``[..., sum(n)]``.

    Args:
        n: number of possible values, or a sequence with this number for each integer.
        start: smallest value of every integer.
    """

    def __init__(self, n: Union[int, Sequence[int]], start: int = 0) -> None:
        super().__init__()
        self.is_single = isinstance(n, int)
        self.sizes = [n] if isinstance(n, int) else list(n)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        """Returns the one-hot vectors of ``x``, float32. ``x`` has an integer dtype. Shapes: see :class:`OneHot`."""
        choices = x.long() - self.start
        if self.is_single:
            return nn.functional.one_hot(choices, self.sizes[0]).float()
        return torch.cat([nn.functional.one_hot(choices[..., i], n) for i, n in enumerate(self.sizes)], -1).float()


class ImageEncoder(nn.Module):
    """Maps images to feature vectors ``[..., width]``: convolutions, then a linear layer, with ReLU after each.

    Images: ``[..., H, W]``, ``[..., H, W, C]``, ``[..., C, H, W]``, or ``K`` stacked images ``[..., K, H, W, C]``; any dtype.

    If height and width are at least 36, the encoder has the three convolutions of the Nature DQN and 512 features. Smaller images get
    one 3 x 3 convolution and 128 features, as in MinAtar.

    Args:
        shape: shape of one observation. Three dimensions are ``[C, H, W]`` if the first is smaller than the last, else ``[H, W, C]``.
        scale: factor by which the encoder multiplies the pixels.

    Attributes:
        width: number of features.

    Raises:
        ValueError: height or width is less than 3.

    Source: Mnih et al., Human-level control through deep reinforcement learning, 2015; Young and Tian, MinAtar, 2019.
    """

    def __init__(self, shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.dims = len(shape)
        self.channels_first = len(shape) == 3 and shape[0] < shape[-1]
        self.scale = scale
        channels, height, width = _image_sizes(shape, self.channels_first)
        if min(height, width) < 3:
            raise ValueError(f"shape: expected images of at least 3 x 3, got observations of shape {list(shape)}")
        large = min(height, width) >= 36
        kernels = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 3, 1)]
        layers: list[nn.Module] = []
        for outputs, size, stride in kernels:
            layers += [_orthogonal(nn.Conv2d(channels, outputs, size, stride), math.sqrt(2.0)), nn.ReLU()]
            channels, height, width = outputs, (height - size) // stride + 1, (width - size) // stride + 1
        # On CPUs, oneDNN convolves faster where the channels of a pixel lie together in memory.
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = 512 if large else 128
        self.linear = _orthogonal(nn.Linear(channels * height * width, self.width), math.sqrt(2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features of the images ``x``: ``[..., width]``, dtype of the weights."""
        lead = x.shape[: x.dim() - self.dims]
        # Merges the leading dimensions into one. The extra dimension serves an observation without leading dimensions.
        x = x.unsqueeze(0).flatten(0, -self.dims - 1)
        # To [batch, channels, height, width].
        if self.dims == 2:
            x = x.unsqueeze(1)
        elif self.dims == 4:
            x = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        elif not self.channels_first:
            x = x.permute(0, 3, 1, 2)
        x = x.to(self.linear.weight.dtype, memory_format=torch.channels_last) * self.scale
        x = self.linear(self.convolutions(x).flatten(1)).relu()
        return x.reshape(lead + x.shape[-1:])


def _image_sizes(shape: Sequence[int], channels_first: bool) -> Tuple[int, int, int]:
    """Returns channels, height and width of one image; stacked images count as channels."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 4:
        return shape[0] * shape[3], shape[1], shape[2]
    return (shape[0], shape[1], shape[2]) if channels_first else (shape[2], shape[0], shape[1])


class TupleEncoder(nn.Module):
    """Encodes an observation that is a tuple of tensors ``[..., *shape]``, one encoder for each, and concatenates the results.

    For a Dict space, the tuple has the order of ``space.spaces``.

    Args:
        encoders: one module for each part, which maps it to vectors ``[..., n]``.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, observation: Tuple[Tensor, ...]) -> Tensor:
        """Encodes and concatenates the parts. Raises ValueError unless ``observation`` is a tuple with one part for each encoder."""
        if not isinstance(observation, tuple) or len(observation) != len(self.encoders):
            got = f"{len(observation)}" if isinstance(observation, tuple) else type(observation).__name__
            raise ValueError(f"observation: expected a tuple of {len(self.encoders)} parts, got {got}")
        return torch.cat([encoder(part) for encoder, part in zip(self.encoders, observation, strict=True)], -1)


def distribution_for(actions: gymnasium.Space[Any]) -> Distribution:
    """Returns the distribution for an action space.

    * ``Discrete``: Categorical. ``MultiDiscrete``: MultiCategorical. ``MultiBinary``: Bernoulli. Their values must start at 0.
    * ``Box`` of float16, float32 or float64: Beta if every entry is bounded below and above, else Normal, whose actions are clipped
      where the environment takes them, see :class:`~a2c_compiled.environments.EnvironmentAction`.

    ``MultiDiscrete``, ``MultiBinary`` and ``Box`` must have exactly one dimension.

    TanhNormal is not used for a bounded box: if tanh saturates, the gradients of its log-density are very large, and the location of the
    normal distribution has no bound.

    Raises:
        ValueError: the space is of another kind, such as a Box of integers, has another number of dimensions, or has values that do not
            start at 0.
    """
    discrete = discrete_distribution_for(actions)
    if discrete is not None and not np.any(getattr(actions, "start", 0)):
        return discrete
    if isinstance(actions, gymnasium.spaces.Box) and len(actions.shape) == 1:
        check_action_space(actions)
        if actions.is_bounded("both"):
            return Beta(actions.shape[0], actions.low.tolist(), actions.high.tolist())
        return Normal(actions.shape[0])
    raise ValueError(
        "action_space: expected a Discrete space, or a MultiDiscrete, MultiBinary or Box space with one dimension, and discrete values that"
        f" start at 0, got {actions}"
    )


def discrete_distribution_for(actions: gymnasium.Space[Any]) -> Optional[Distribution]:
    """Returns the distribution for a discrete action space, or None for another space.

    Ignores ``actions.start``: the distribution's values start at 0.
    """
    spaces = gymnasium.spaces
    if isinstance(actions, spaces.Discrete):
        return Categorical(int(actions.n))
    if isinstance(actions, spaces.MultiDiscrete) and actions.nvec.ndim == 1:
        return MultiCategorical(actions.nvec.tolist())
    if isinstance(actions, spaces.MultiBinary) and len(actions.shape) == 1:
        return Bernoulli(actions.shape[0])
    return None


def mlp(inputs: int, hidden: Sequence[int], outputs: int, output_gain: float) -> nn.Sequential:
    """Builds an MLP: one tanh layer for each width in ``hidden``, then a linear layer. Weights are orthogonal, biases zero.

    Args:
        inputs: width of the input.
        hidden: widths of the hidden layers.
        outputs: width of the output.
        output_gain: gain of the last layer's weights.
    """
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
