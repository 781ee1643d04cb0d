"""One look of the policy at its environments."""

from typing import NamedTuple, Optional

from torch import Tensor

from a2c_compiled.environments import Observation
from a2c_compiled.losses import A2CLoss


class Acted(NamedTuple):
    """What ``N`` environments are answered.

    Attributes:
        action: ``[N, *event]``.
        log_prob: its log-probability, ``[N]``; None where the loss does not read it.
        state_value: value of the observation, ``[N]``; None where the loss does not read it.
    """

    action: Tensor
    log_prob: Optional[Tensor]
    state_value: Optional[Tensor]


def act(loss: A2CLoss, observation: Observation) -> Acted:
    """Sample actions, and keep of them what the loss would otherwise compute again."""
    value = loss.critic_network(observation) if loss.reads_state_value else None
    return answer(loss, loss.actor_network(observation), value)


def answer(loss: A2CLoss, params: Tensor, value: Optional[Tensor]) -> Acted:
    """Sample actions from ``params``; ``value`` is the critic's, if the loss reads it."""
    action = loss.distribution.sample(params)
    log_prob = loss.distribution.log_prob(params, action) if loss.reads_log_prob else None
    return Acted(action, log_prob, None if value is None else value.reshape(params.shape[:-1]))
