"""What of a loss is worth exporting, as modules of tensors to tensors."""

from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.distributions import Distribution
from a2c_compiled.export.tracing.call import DynamicAxes
from a2c_compiled.losses import A2CLoss
from a2c_compiled.recurrent import next_hidden
from a2c_compiled.update.rollout import Rollout


class GreedyAction(NamedTuple):
    """Output of :class:`GreedyPolicy`."""

    action: Tensor


class SampledAction(NamedTuple):
    """Outputs of :class:`SampledPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor


class RememberedAction(NamedTuple):
    """Outputs of :class:`RecurrentPolicy`."""

    action: Tensor
    next_hidden: Tensor


class GreedyPolicy(nn.Module):
    """From an observation to the greedy action."""

    def __init__(self, actor_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution

    def forward(self, observation: Tensor) -> GreedyAction:
        """``observation`` is ``[N, ...]``."""
        return GreedyAction(self.distribution.mode(self.actor_network(observation)))


class SampledPolicy(nn.Module):
    """From an observation and noise to an action, its log-probability, and the value of the observation.

    The noise is an input, so that a graph gives the same answer wherever it runs: what ``distribution.noise`` draws, of the distribution's
    ``noise_kind``.
    """

    def __init__(self, actor_network: nn.Module, critic_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.distribution = distribution

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


class Graph(NamedTuple):
    """A module with inputs to export it from; ``dynamic_axes`` names their leading dimensions that may vary."""

    module: nn.Module
    example_inputs: Dict[str, Tensor]
    dynamic_axes: DynamicAxes


def graphs_of(loss: A2CLoss, rollout: Rollout) -> Dict[str, Graph]:
    """The graphs of a loss by name: ``policy``, ``policy_sampled``, ``loss`` and ``estimator``, with examples from a rollout."""
    entries, axes = read_entries(loss, rollout), leading_axes(loss, rollout)
    observation = rollout.observation.flatten(0, 1)
    with torch.no_grad():
        noise = loss.distribution.noise(loss.actor_network(observation))
        values = loss.critic_network(torch.cat([rollout.observation, rollout.next_observation])).reshape(
            2, *rollout.reward.shape
        )
    estimator_inputs = {
        "state_value": values[0],
        "next_state_value": values[1],
        **{name: entries[name] for name in ("reward", "done", "terminated")},
    }
    if "log_prob" in entries:
        estimator_inputs |= {"log_pi": entries["log_prob"], "log_mu": entries["log_prob"]}
    # The loss calls what the rollout calls log_prob the sample's, to tell it from its own.
    loss_inputs = {"sample_log_prob" if name == "log_prob" else name: tensor for name, tensor in entries.items()}
    return {
        "policy": Graph(GreedyPolicy(loss.actor_network, loss.distribution), {"observation": observation}, ("N",)),
        "policy_sampled": Graph(
            SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution),
            {"observation": observation, "noise": noise},
            ("N",),
        ),
        "loss": Graph(loss, loss_inputs, axes),
        "estimator": Graph(loss.value_estimator, estimator_inputs, axes),
    }


def leading_axes(loss: A2CLoss, rollout: Rollout) -> Tuple[str, str]:
    """Names of the first two dimensions of a rollout, as the loss's value estimator sees them."""
    return ("T", "N") if loss.value_estimator.time_dim % rollout.reward.dim() == 0 else ("N", "T")


def read_entries(loss: A2CLoss, rollout: Rollout) -> Dict[str, Tensor]:
    """The entries of a rollout that a loss reads: any other would be a dead input of its graph.

    Raises:
        ValueError: one that it needs is None.
    """
    unread = set()
    if not loss.reads_log_prob:
        unread.add("log_prob")
    if loss.clip_value is None:
        unread.add("state_value")
    entries = {name: tensor for name, tensor in rollout._asdict().items() if tensor is not None and name not in unread}
    if loss.value_estimator.needs_log_prob and "log_prob" not in entries:
        raise ValueError("rollout: expected a log_prob, which the value estimator needs, got None")
    return entries
