"""Runs the policy once on a batch of observations. In shapes, ``*event`` is the shape of one action."""

from typing import Any, NamedTuple, Optional, Tuple

from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.environments import Observation
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.batch_apply import explained
from a2c_compiled.recurrent import run_step


class PolicyOutput(NamedTuple):
    """Output of the policy for the observations of ``N`` environments.

    Attributes:
        action: ``[N, *event]``, dtype of the distribution's samples from float32 or float64 parameters: the sampled actions.
        log_prob: ``[N]``, float32 or float64: log-probability of ``action``. None if the loss does not read log-probabilities.
        state_value: ``[N]``, floating point: the critic's value of the observation. None if the loss does not read state values.
        next_hidden: ``[N, H]``, floating point: the state of the recurrent layers after the step. None without recurrent networks.
    """

    action: Tensor
    log_prob: Optional[Tensor]
    state_value: Optional[Tensor]
    next_hidden: Optional[Tensor] = None


def act(loss: A2CLoss, observation: Observation, hidden: Optional[Tensor] = None) -> PolicyOutput:
    """Samples actions for ``observation``, with the log-probabilities and state values that the loss reads.

    Args:
        loss: loss with the actor network, the critic network and the distribution.
        observation: ``[N, ...]``, or a tuple of such tensors. With recurrent networks, one tensor.
        hidden: ``[N, H]``, floating point: the state of the recurrent layers of both networks. None if there are none.
    """
    if hidden is None:

        def outputs(inputs: Any) -> Tuple[Tensor, Optional[Tensor]]:
            features = loss.features(inputs) if loss.reads_state_value else None
            value = loss.critic_output(inputs, features) if loss.reads_state_value else None
            return loss.actor_output(inputs, features), value

        return _sample_action(loss, *explained("actor_network", loss.actor_network, outputs, observation, leading_dims=1))
    assert isinstance(observation, Tensor), "expected one tensor as the observation of a recurrent network"
    (params, value), after = run_step([loss.actor_network, loss.critic_network], observation, hidden)
    return _sample_action(loss, params, value if loss.reads_state_value else None, after)


def _sample_action(
    loss: A2CLoss, params: Tensor, value: Optional[Tensor], next_hidden: Optional[Tensor] = None
) -> PolicyOutput:
    """Samples actions from the distribution with parameters ``params``.

    As in the loss, half-precision parameters become float32, and the score is ``log_prob`` of the action that is returned. The loss
    therefore computes the same score while the policy is unchanged, so that the importance ratio is 1.

    Args:
        loss: loss with the distribution.
        params: ``[N, num_params]``, floating point: output of the actor network.
        value: ``[N]`` or ``[N, 1]``, floating point: output of the critic network. None if the loss does not read state
            values.
        next_hidden: ``[N, H]``, floating point: the state after the step. None without recurrent networks.
    """
    params = widen(params)
    action = loss.distribution.sample(params)
    log_prob = loss.distribution.log_prob(params, action) if loss.reads_log_prob else None
    state_value = None if value is None else value.reshape(params.shape[:-1])
    return PolicyOutput(action, log_prob, state_value, next_hidden)
