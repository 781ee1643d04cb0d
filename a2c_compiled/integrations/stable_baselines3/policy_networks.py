"""The networks and the policy of a Stable-Baselines3 model as plain modules. TorchScript can compile all of them."""

import copy
from typing import Dict, List, Tuple

import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from a2c_compiled._export_names import GreedyAction, RecurrentAction, SampledAction
from a2c_compiled._kinds import described
from a2c_compiled.distributions import Distribution
from a2c_compiled.shared_trunk import ActorAndCritic


class Network(nn.Module):
    """Preprocessing, features extractor, hidden layers and head of an SB3 policy, for any batch shape ``[*B]``."""

    shape: List[int]

    def __init__(
        self, shape: List[int], preprocess: nn.Module, features_extractor: nn.Module, hidden: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.shape = shape
        self.preprocess = preprocess
        self.features_extractor = _plain(features_extractor)
        self.hidden = _plain(hidden)
        self.head = _plain(head)

    def forward(self, observation: Tensor) -> Tensor:
        """Maps observations ``[*B, *shape]`` to outputs ``[*B, outputs]``.

        Raises:
            ValueError: the last dimensions of ``observation`` are not ``shape``.
        """
        leading = observation.dim() - len(self.shape)
        if leading < 0 or list(observation.shape[leading:]) != self.shape:
            raise ValueError(
                f"observation: expected the last dimensions {self.shape} of the model's space, got shape {list(observation.shape)}"
            )
        features = self.features_extractor(self.preprocess(observation.reshape([-1] + self.shape)))
        output = self.head(self.hidden(features))
        return output.reshape(list(observation.shape[:leading]) + [output.size(-1)])


class MultiInputNetwork(nn.Module):
    """The :class:`Network` of a Dict space: its observations are tuples of tensors ``[*B, *shape]``, in the order of the space."""

    def __init__(
        self,
        shapes: Dict[str, List[int]],
        preprocess: nn.Module,
        features_extractor: nn.Module,
        hidden: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.shapes = shapes
        self.preprocess = preprocess
        self.features_extractor = features_extractor
        self.hidden = hidden
        self.head = head

    def forward(self, observation: Tuple[Tensor, ...]) -> Tensor:
        """Maps a tuple of observations to outputs ``[*B, outputs]``.

        Raises:
            TypeError: ``observation`` is not a tuple.
            ValueError: its length, the last dimensions of a tensor or its leading dimensions are wrong.
        """
        expected = f"a tuple of {', '.join(f'{key} [*B, *{shape}]' for key, shape in self.shapes.items())}"
        if not isinstance(observation, tuple):
            raise TypeError(f"observation: expected {expected}, got {described(observation)}")
        given = [list(x.shape) for x in observation]
        batch = given[0][: len(given[0]) - len(next(iter(self.shapes.values())))] if given else []
        if given != [batch + shape for shape in self.shapes.values()]:
            raise ValueError(f"observation: expected {expected} with equal *B, got shapes {given}")
        parts = tuple(x.reshape([-1] + shape) for x, shape in zip(observation, self.shapes.values(), strict=True))
        output = self.head(self.hidden(self.features_extractor(self.preprocess(parts))))
        return output.reshape([*batch, output.size(-1)])


def _plain(module: nn.Module) -> nn.Module:
    """Returns a module that TorchScript can compile, with the same parameters: SB3 stores sizes as numpy integers, the result as ints."""
    if type(module) is FlattenExtractor:
        return nn.Flatten()
    if type(module) is nn.Sequential:
        return nn.Sequential(*map(_plain, module))
    if type(module) is nn.Linear:
        module = copy.copy(module)
        module.in_features, module.out_features = int(module.in_features), int(module.out_features)
    return module


class StateDependentScale(nn.Module):
    r"""Last layer of an actor with generalised state-dependent exploration (gSDE).

    The scale of action :math:`j` for features :math:`\phi` is :math:`\sqrt{\sum_i \phi_i^2 \sigma_{ij}^2 + \epsilon}`
    (Raffin et al. 2021, https://arxiv.org/abs/2005.05719).

    Args:
        mean: maps features ``[*B, features]`` to means ``[*B, dim]``.
        log_std: ``[features, dim]`` or ``[features, 1]``: determines :math:`\sigma`.
        noise: SB3's distribution, with the constants of its formula.
    """

    def __init__(self, mean: nn.Module, log_std: nn.Parameter, noise: StateDependentNoiseDistribution) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = log_std
        self.learns_features = bool(noise.learn_features)
        self.use_expln = bool(noise.use_expln)
        self.epsilon = float(noise.epsilon)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features ``[*B, features]`` to means and logarithms of scales, ``[*B, 2 * dim]``."""
        log_std = self.log_std
        std = log_std.exp()
        if self.use_expln:
            std = torch.where(
                log_std > 0, torch.log1p(log_std.clamp(min=0.0) + self.epsilon) + 1.0, log_std.clamp(max=0.0).exp()
            )
        mean = self.mean(features)
        squared = (features if self.learns_features else features.detach()).square()
        variance = torch.matmul(squared, std.square()).expand_as(mean)
        return torch.cat([mean, 0.5 * torch.log(variance + self.epsilon)], -1)


class Floating(nn.Module):
    """Converts actions to float32."""

    def forward(self, action: Tensor) -> Tensor:
        """Returns a float32 tensor of the shape of ``action``."""
        return action.float()


class ModelPolicy(nn.Module):
    """A base of the policies of a model.

    Args:
        raw: maps observations of the environment to those of the model.
        actor_network: maps observations of the model to the parameters of the distribution.
        distribution: action distribution.
        bounds: maps actions of the distribution to those that ``model.predict`` returns.
    """

    def __init__(self, raw: nn.Module, actor_network: nn.Module, distribution: Distribution, bounds: nn.Module) -> None:
        super().__init__()
        self.raw = raw
        self.actor_network = actor_network
        self.distribution = distribution
        self.bounds = bounds


class PredictPolicy(ModelPolicy):
    """Maps observations of the environment to the actions that ``model.predict(observation, deterministic=True)`` returns."""

    def forward(self, observation: Tensor) -> GreedyAction:
        """Returns the actions for a batch of observations, ``[N, ...]``."""
        return GreedyAction(self.bounds(self.distribution.mode(self.actor_network(self.raw(observation)))))


class SampledPredictPolicy(ModelPolicy, ActorAndCritic):
    """Samples the actions of ``model.predict(observation, deterministic=False)``. The random noise is an input.

    Args:
        raw, actor_network, distribution, bounds: as in :class:`ModelPolicy`.
        critic_network: maps an observation of the model's space to its value.
    """

    def __init__(
        self, raw: nn.Module, actor_network: nn.Module, distribution: Distribution, bounds: nn.Module, critic_network: nn.Module
    ) -> None:
        super().__init__(raw, actor_network, distribution, bounds)
        self.critic_network = critic_network

    def forward(self, observation: Tensor, noise: Tensor) -> SampledAction:
        """Returns the actions that ``noise`` selects, within the bounds of the action space.

        Args:
            observation: ``[N, ...]``: observations of the environment.
            noise: ``[N, ...]``, float32: one row of ``distribution.noise`` for each observation.

        Returns:
            ``action``: as ``model.predict`` returns it. ``log_prob``: ``[N]``, float32: of the action before it is clipped to the bounds.
            ``state_value``: ``[N]``, float32.
        """
        observation = self.raw(observation)
        features = self.features(observation)
        params = self.actor_output(observation, features)
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        return SampledAction(self.bounds(action), log_prob, self.critic_output(observation, features).squeeze(-1))


class PredictFromFrames(ModelPolicy):
    """:class:`PredictPolicy` for a model whose frames are normalised before they are stacked. The stack of frames is its hidden state.

    A hidden state of zeros at the first step of an episode is SB3's stack of that step. Its zeros are normalised numbers, so that no
    observation of the environment equals them.

    Args:
        raw, actor_network, distribution, bounds: as in :class:`ModelPolicy`. ``raw`` takes one frame.
        frame_shape: shape of one frame.
        dim: dimension along which frames are stacked, in a batch.
    """

    frame_shape: List[int]

    def __init__(
        self,
        raw: nn.Module,
        actor_network: nn.Module,
        distribution: Distribution,
        bounds: nn.Module,
        frame_shape: List[int],
        dim: int,
    ) -> None:
        super().__init__(raw, actor_network, distribution, bounds)
        self.frame_shape = frame_shape
        self.dim = dim

    def forward(self, observation: Tensor, hidden: Tensor) -> RecurrentAction:
        """Returns the actions for a batch of observations, and the next hidden state.

        Args:
            observation: ``[N, *frame_shape]``: one frame.
            hidden: ``[N, *stacked]``, float32: the frames of the steps before, normalised and stacked. 0 at the first step of an episode.

        Raises:
            ValueError: ``observation`` is not one frame.
        """
        if list(observation.shape[1:]) != self.frame_shape:
            raise ValueError(
                f"observation: expected one frame [N, *{self.frame_shape}] (the policy stacks frames), got {list(observation.shape)}"
            )
        size = observation.size(self.dim)
        kept = hidden.narrow(self.dim, size, hidden.size(self.dim) - size)
        frames = torch.cat([kept, self.raw(observation)], self.dim)
        return RecurrentAction(self.bounds(self.distribution.mode(self.actor_network(frames))), frames)
