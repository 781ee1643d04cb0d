"""Policies as modules of tensors to tensors."""

from typing import Dict, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled._export_names import GreedyAction
from a2c_compiled._parameters import parameter_names_by_location
from a2c_compiled.distributions import Distribution
from a2c_compiled.export.tracing.call import InputsByName
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.losses import A2CLoss
from a2c_compiled.recurrent import next_hidden


class SampledAction(NamedTuple):
    """Outputs of :class:`SampledPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor


class RememberedAction(NamedTuple):
    """Outputs of :class:`RecurrentPolicy`."""

    action: Tensor
    next_hidden: Tensor


class ActingOutputs(NamedTuple):
    """Outputs of :class:`ActingPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    greedy_action: Tensor
    greedy_log_prob: Tensor


class GreedyPolicy(nn.Module):
    """From an observation to the greedy action."""

    def __init__(self, actor_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution

    def forward(self, observation: Tensor) -> GreedyAction:
        """``observation`` is ``[N, ...]``."""
        return GreedyAction(self.distribution.mode(self.actor_network(observation)))


class _ActorCritic(nn.Module):
    """The networks and the distribution of a policy that samples its actions."""

    def __init__(self, actor_network: nn.Module, critic_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.distribution = distribution


class SampledPolicy(_ActorCritic):
    """From an observation and noise to an action, its log-probability, and the value of the observation.

    The noise is an input, so that a graph gives the same answer wherever it runs: what ``distribution.noise`` draws, of the distribution's
    ``noise_kind``.
    """

    def forward(self, observation: Tensor, noise: Tensor) -> SampledAction:
        """``observation`` is ``[N, ...]``; ``noise`` has a row for each; ``state_value`` is ``[N]``."""
        action, log_prob = self.distribution.sample_and_log_prob(self.actor_network(observation), noise)
        return SampledAction(action, log_prob, self.critic_network(observation).reshape(log_prob.shape))


class RecurrentPolicy(nn.Module):
    """From an observation and the hidden state to the greedy action and the next hidden state.

    For actor networks of :mod:`a2c_compiled.recurrent`. At the first step of an episode the hidden state is zero.
    """

    def __init__(self, actor_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution

    def forward(self, observation: Tensor, hidden: Tensor) -> RememberedAction:
        """``observation`` is ``[N, ...]``, ``hidden`` is ``[N, H]``, with ``H = recurrent.hidden_size(actor_network)``."""
        start = torch.ones([1, observation.size(0)], dtype=torch.bool, device=observation.device)
        params = self.actor_network((observation.unsqueeze(0), hidden.unsqueeze(0), start)).squeeze(0)
        return RememberedAction(self.distribution.mode(params), next_hidden(self.actor_network, observation, hidden))


class _Acting(_ActorCritic):
    def forward(self, observation: Tensor, noise: Tensor) -> ActingOutputs:
        params = self.actor_network(observation)
        greedy_action = self.distribution.mode(params)
        greedy_log_prob = self.distribution.log_prob(params, greedy_action)
        action, log_prob = self.distribution.sample_and_log_prob(params, noise)
        state_value = self.critic_network(observation).reshape(log_prob.shape)
        return ActingOutputs(action, log_prob, state_value, greedy_action, greedy_log_prob)


class ActingPolicy(InputsByName):
    """The policy of a loss with parameters for inputs: from observation and noise to an action, and the greedy one.

    Args:
        loss: whose networks these are.
        parameter_names: of the parameters that are inputs; the others are constants.
        observation: an example, ``[N, ...]``.

    Attributes:
        example_inputs, dynamic_axes: as of :class:`~a2c_compiled.export.TrainStepGraph`.

    Raises:
        ExportError: the distribution has no noise to be given.
    """

    source: _Acting

    def __init__(self, loss: A2CLoss, parameter_names: Sequence[str], observation: Tensor) -> None:
        if loss.distribution.noise_kind is None:
            raise ExportError(
                f"ActingPolicy cannot be exported: {type(loss.distribution).__name__} draws its own random numbers, which have to be an"
                " input. Use one of a2c_compiled.distributions that has a noise_kind"
            )
        policy = _Acting(loss.actor_network, loss.critic_network, loss.distribution)
        own = dict(policy.named_parameters())
        params = {name: own[name].detach().clone() for name in own if name in parameter_names}
        with torch.no_grad():
            noise = loss.distribution.noise(loss.actor_network(observation))
        super().__init__(policy, [*params, "observation", "noise"])
        self.example_inputs = {**params, "observation": observation, "noise": noise}
        self.dynamic_axes = {"observation": ("N",), "noise": ("N",)}
        self._places = {place: name for place, name in parameter_names_by_location(policy).items() if name in params}

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """The fields of :class:`ActingOutputs`."""
        placed = {place: inputs[name] for place, name in self._places.items()}
        arguments = inputs["observation"], inputs["noise"]
        outputs = torch.func.functional_call(self.source, placed, arguments, tie_weights=False)
        return outputs._asdict()
