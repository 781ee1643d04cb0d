"""The graphs of a loss, with example inputs taken from a rollout."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._export_names import ESTIMATOR, LOSS, POLICY, POLICY_SAMPLED
from a2c_compiled.export.graphs.policies import (
    GreedyPolicy,
    RecurrentPolicy,
    RecurrentSampledPolicy,
    SampledPolicy,
    flattened,
    policy_inputs,
)
from a2c_compiled.export.tracing.call import DynamicAxes
from a2c_compiled.losses import A2CLoss
from a2c_compiled.losses.batch import agents_layout, laid_out, like_values, per_step, time_and_agent_dims
from a2c_compiled.losses.critic_inputs import concatenate
from a2c_compiled.recurrent import unrolls
from a2c_compiled.update.rollout import Rollout, as_loss_arguments, check_rollout


class Graph(NamedTuple):
    """A module, and the inputs to export it with.

    Attributes:
        module: the module to export.
        example_inputs: tensors, or observations that are tuples of tensors, by argument name, in the shapes and dtypes that ``module``
            accepts.
        dynamic_axes: names of the leading dimensions that may vary in size, such as ``("T", "N")``; see
            :func:`~a2c_compiled.export.export_onnx`.
    """

    module: nn.Module
    example_inputs: Dict[str, Any]
    dynamic_axes: DynamicAxes


def graphs_of(loss: A2CLoss, rollout: Rollout, action_space: Any = None) -> Dict[str, Graph]:
    """Returns the graphs of a loss by name, with example inputs from a rollout.

    - ``policy``: a :class:`~a2c_compiled.export.GreedyPolicy`, from ``observation``. Of recurrent networks: a
      :class:`~a2c_compiled.export.RecurrentPolicy`, also from ``hidden``.
    - ``policy_sampled``: a :class:`~a2c_compiled.export.SampledPolicy`, from ``observation`` and ``noise``. Of recurrent networks: a
      :class:`~a2c_compiled.export.RecurrentSampledPolicy`, also from ``hidden``.
    - ``loss``: ``loss`` itself, from the rollout entries that the loss reads.
    - ``estimator``: the value estimator of ``loss``, from the critic's values and the rollout.

    Args:
        loss: loss whose networks, distribution and value estimator are exported.
        rollout: example data, ``[T, N, ...]``, or ``[N, T, ...]`` if the ``time_dim`` of the value estimator is the second dimension.
            Dtypes: see :class:`~a2c_compiled.update.Rollout`.
        action_space: gymnasium's action space of one environment, for the policies, see :class:`~a2c_compiled.export.SampledPolicy`.

    Raises:
        ValueError: the value estimator needs ``log_prob``, and the rollout has none; with several agents, also if an entry has another
            shape than :class:`~a2c_compiled.A2CLoss` accepts.
        TypeError: an entry of the rollout is not a tensor; an observation is neither a tensor nor a tuple of tensors.
    """
    entries, axes = read_entries(loss, rollout), leading_axes(loss, rollout)
    inputs = policy_inputs(loss, flattened(rollout.observation))
    with torch.no_grad():
        values = loss.critic_network(concatenate(rollout.observation, rollout.next_observation, 0)).unflatten(0, (2, -1))
    estimator_inputs = {
        "state_value": values[0],
        "next_state_value": values[1],
        **{name: entries[name] for name in ("reward", "done", "terminated")},
    }
    if loss.value_estimator.several_agents:
        steps = _one_entry_per_step(loss, rollout)
        agent, extra_dims = agents_layout(steps, loss.value_estimator.agent_dim, loss.value_estimator.time_dim)
        each = {name: per_step(name, tensor, steps, agent) for name, tensor in estimator_inputs.items()}
        value = each["state_value"]
        estimator_inputs = {name: laid_out(like_values(name, x, value, agent), extra_dims) for name, x in each.items()}
    else:
        for name in ("state_value", "next_state_value"):
            estimator_inputs[name] = estimator_inputs[name].reshape(rollout.reward.shape)
    if "log_prob" in entries:
        estimator_inputs |= {"log_pi": entries["log_prob"], "log_mu": entries["log_prob"]}
    greedy, sampled = (RecurrentPolicy, RecurrentSampledPolicy) if "hidden" in inputs else (GreedyPolicy, SampledPolicy)
    of_greedy = {name: entry for name, entry in inputs.items() if name != "noise"}
    return {
        POLICY: Graph(greedy(loss.actor_network, loss.distribution, action_space=action_space), of_greedy, ("N",)),
        POLICY_SAMPLED: Graph(
            sampled(loss.actor_network, loss.critic_network, loss.distribution, action_space=action_space), inputs, ("N",)
        ),
        LOSS: Graph(loss, as_loss_arguments(entries), axes),
        ESTIMATOR: Graph(loss.value_estimator, estimator_inputs, axes),
    }


def leading_axes(loss: A2CLoss, rollout: Rollout) -> Tuple[Optional[str], Optional[str]]:
    """Returns the names of the first two dimensions of a rollout, in the order that the value estimator of ``loss`` expects.

    None for time if a graph of the networks contains every step, so that the number of steps is fixed.
    """
    estimator = loss.value_estimator
    steps = _one_entry_per_step(loss, rollout) if estimator.several_agents else rollout.reward
    time_dim = time_and_agent_dims(estimator, rollout.reward, steps)[0]
    time = None if unrolls(loss) else "T"
    return (time, "N") if time_dim == 0 else ("N", time)


def _one_entry_per_step(loss: A2CLoss, rollout: Rollout) -> Tensor:
    """Returns a tensor with the shape of the log-probability of the actions, ``[*B]``."""
    params = rollout.reward.new_ones(loss.distribution.num_params)
    return rollout.action if loss.distribution.action_of_ones(params).dim() == 0 else rollout.action[..., 0]


def read_entries(loss: A2CLoss, rollout: Rollout) -> Dict[str, Any]:
    """Returns the rollout entries that a loss reads. Other entries would be unused inputs of its graph.

    Raises:
        ValueError: the value estimator needs ``log_prob``, and the rollout has none.
        TypeError: an entry is not a tensor; an observation is neither a tensor nor a tuple of tensors.
    """
    check_rollout(rollout)
    unread = set()
    if not loss.reads_log_prob:
        unread.add("log_prob")
    if not loss.reads_state_value:
        unread.add("state_value")
    entries = {name: tensor for name, tensor in rollout._asdict().items() if tensor is not None and name not in unread}
    if loss.value_estimator.needs_log_prob and "log_prob" not in entries:
        raise ValueError("rollout: expected a log_prob, which the value estimator needs, got None")
    return entries
