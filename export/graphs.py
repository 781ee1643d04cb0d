"""What of a loss is worth exporting, as modules of tensors to tensors."""

from typing import Dict, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled.distributions import Distribution
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.rollout import Rollout


class GreedyAction(NamedTuple):
    """Output of :class:`GreedyPolicy`."""

    action: Tensor


class SampledAction(NamedTuple):
    """Outputs of :class:`SampledPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor


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

    The noise is an input, so that a graph gives the same answer wherever it runs: what ``distribution.noise`` draws, which is one standard
    Gumbel number for each choice of a discrete distribution and one standard normal number for each dimension of a continuous one.
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


class Graph(NamedTuple):
    """A module with inputs to export it from; ``dynamic_axes`` names the leading dimensions that may vary."""

    module: nn.Module
    example_inputs: Dict[str, Tensor]
    dynamic_axes: Sequence[str]


def graphs_of(loss: A2CLoss, rollout: Rollout) -> Dict[str, Graph]:
    """The graphs of a loss by name: ``policy``, ``policy_sampled``, ``loss`` and ``estimator``, with examples from a time-major rollout."""
    observation = rollout.observation.flatten(0, 1)
    with torch.no_grad():
        noise = loss.distribution.noise(loss.actor_network(observation))
        values = loss.critic_network(torch.cat([rollout.observation, rollout.next_observation])).reshape(
            2, *rollout.reward.shape
        )
    # What the loss does not read would be a dead input of its graph.
    needs_log_prob, clips = loss.value_estimator.needs_log_prob, loss.clip_value is not None
    optional = {
        "sample_log_prob": rollout.log_prob if needs_log_prob else None,
        "state_value": rollout.state_value if clips else None,
        "mask": rollout.mask,
    }
    ends = {"done": rollout.done, "terminated": rollout.terminated}
    graphs = {
        "policy": Graph(GreedyPolicy(loss.actor_network, loss.distribution), {"observation": observation}, ("N",)),
        "policy_sampled": Graph(
            SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution),
            {"observation": observation, "noise": noise},
            ("N",),
        ),
        "loss": Graph(
            loss,
            {
                "observation": rollout.observation,
                "action": rollout.action,
                "reward": rollout.reward,
                "next_observation": rollout.next_observation,
                **ends,
                **{name: tensor for name, tensor in optional.items() if tensor is not None},
            },
            ("T", "N"),
        ),
    }
    estimator_inputs = {"state_value": values[0], "next_state_value": values[1], "reward": rollout.reward, **ends}
    if needs_log_prob:
        estimator_inputs |= {"log_pi": rollout.log_prob, "log_mu": rollout.log_prob}
    graphs["estimator"] = Graph(loss.value_estimator, estimator_inputs, ("T", "N"))
    return graphs
