"""Checks the inputs of the loss and brings them to one shape. TorchScript compiles this file.

Steps that the mask excludes may hold NaN, infinity or actions that the distribution lacks. In observations, rewards and
``sample_log_prob``, :func:`zero_nonfinite` replaces NaN and infinity by 0. In actions and distribution parameters,
:func:`replace_uncounted` replaces everything. ``losses/a2c.py`` sets the other tensors to 0 at these steps.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._kinds import check_observation, check_optional_mask, check_tensor, check_tensors
from a2c_compiled.estimators import ValueEstimator
from a2c_compiled.losses.a2c import check_shape


class Batch(NamedTuple):
    """The arguments of ``A2CLoss.forward`` except ``action`` and ``noise``.

    After :func:`shaped`, every per-step tensor has the shape ``[*B]`` of the log-probability. With an estimator of several agents, a
    tensor of the team has size 1 in the dimension of agents. ``mask`` and ``advantage`` are expanded to ``[*B]``.
    """

    observation: Tensor
    reward: Optional[Tensor] = None
    next_observation: Optional[Tensor] = None
    done: Optional[Tensor] = None
    terminated: Optional[Tensor] = None
    advantage: Optional[Tensor] = None
    value_target: Optional[Tensor] = None
    state_value: Optional[Tensor] = None
    sample_log_prob: Optional[Tensor] = None
    mask: Optional[Tensor] = None
    steps_to_next_obs: Optional[Tensor] = None
    group: Optional[Tensor] = None
    # The number of dimensions of the reward that the user passed, minus the number of dimensions of [*B]: 1 for [*B, 1]. The value
    # estimator receives tensors with the dimensions of that reward, because time_dim counts those dimensions.
    # With several agents, it is 1 if the value estimator receives [*B, 1], and 0 if it receives [*B].
    extra_dims: int = 0
    cu_seqlens: Optional[Tensor] = None  # [S + 1]: starts of packed sequences along time, then T
    agent: int = -1  # the dimension of agents in [*B]; -1 with an estimator of a single agent
    features: Optional[Tensor] = None  # [*B, ...]: output of the trunk for the observations; None without a common trunk


def check_entries(entries: Batch, action: Tensor) -> None:
    """Raises TypeError if an entry or ``action`` is not a tensor or ``mask`` is not bool, ValueError if ``action`` requires grad."""
    if not torch.jit.is_scripting():
        check_observation("observation", entries.observation)
        if entries.next_observation is not None:
            check_observation("next_observation", entries.next_observation)
        check_tensors(_TENSORS, [getattr(entries, name) for name in _TENSORS], 0)
    check_tensor("action", action)
    if action.requires_grad:
        raise ValueError("action: expected a tensor that does not require grad, got one that does")
    check_optional_mask(entries.mask)


_TENSORS = tuple(
    name for name in Batch._fields if name not in ("observation", "next_observation", "extra_dims", "agent", "features")
)


def shaped(
    batch: Batch, observation: Tensor, log_prob: Tensor, agent: int, agents_extra_dims: int, features: Optional[Tensor]
) -> Batch:
    """Returns ``batch`` with the shapes that :class:`Batch` describes.

    At the steps that the mask excludes, 0 replaces NaN and infinity in ``reward``, ``next_observation`` and ``sample_log_prob``.
    ``observation``, the result of :func:`zero_nonfinite`, replaces ``batch.observation``. If ``batch`` has an advantage, the fields that
    only the value estimator reads become None. ``agent``, ``agents_extra_dims`` and ``features``: see the last fields of
    :class:`Batch`.
    """
    mask = batch.mask
    if mask is not None:
        mask = of_each_agent("mask", mask, log_prob, agent)
    state_value = _per_step_or_none("state_value", batch.state_value, log_prob, agent)
    sample_log_prob = _per_step_or_none("sample_log_prob", batch.sample_log_prob, log_prob, -1)
    sample_log_prob = _zero_nonfinite_or_none("sample_log_prob", sample_log_prob, mask, False)
    advantage = batch.advantage
    if advantage is not None:  # the loss then reads neither rewards nor next observations
        advantage = of_each_agent("advantage", advantage, log_prob, agent)
        value_target = _per_step_or_none("value_target", batch.value_target, log_prob, agent)
        return Batch(
            observation,
            None,
            None,
            None,
            None,
            advantage,
            value_target,
            state_value,
            sample_log_prob,
            mask,
            agent=agent,
            features=features,
        )
    reward = batch.reward
    next_observation = _zero_nonfinite_or_none("next_observation", batch.next_observation, mask, agent >= 0)
    done, terminated, steps, group = batch.done, batch.terminated, batch.steps_to_next_obs, batch.group
    extra_dims = agents_extra_dims
    if reward is not None and agent >= 0:
        reward = per_step("reward", reward, log_prob, agent)
        if group is not None and group.dim() >= log_prob.dim() - 1:  # otherwise it has the leading dimensions alone
            group = per_step("group", group, log_prob, agent)
    if reward is not None and agent < 0:
        # These checks precede the reshaping: with shapes [T, N, 1] and [T, N], time_dim=-2 would mean different dimensions.
        has_same_length = list(reward.shape[:1]) == list(log_prob.shape[:1])
        if has_same_length:  # otherwise the reward has the wrong shape, which a later check reports
            _check_like_reward("done", done, reward)
            _check_like_reward("terminated", terminated, reward)
        dims_as_passed = reward.dim()
        reward = match_dims(reward, log_prob)
        extra_dims = dims_as_passed - reward.dim()
        group = _per_step_or_none("group", group, log_prob, agent)
    if reward is not None:
        done = _per_step_or_none("done", done, log_prob, agent)
        terminated = _per_step_or_none("terminated", terminated, log_prob, agent)
        steps = _per_step_or_none("steps_to_next_obs", steps, log_prob, agent)
    reward = _zero_nonfinite_or_none("reward", reward, mask, False)
    return Batch(
        observation,
        reward,
        next_observation,
        done,
        terminated,
        None,
        None,
        state_value,
        sample_log_prob,
        mask,
        steps,
        group,
        extra_dims,
        batch.cu_seqlens,
        agent,
        features,
    )


def agents_layout(log_prob: Tensor, agent_dim: int, time_dim: int) -> Tuple[int, int]:
    """Returns the dimension of agents in ``log_prob``, ``[*B]``, and 1 if the value estimator receives ``[*B, 1]``, 0 for ``[*B]``.

    ``agent_dim`` and ``time_dim`` of the estimator count in ``[*B, 1]``. If one of them is -1, they count in ``[*B]``.
    Raises ValueError if ``log_prob`` has no such dimension of agents.
    """
    extra_dims = 0 if agent_dim == -1 or time_dim == -1 else 1
    dims = log_prob.dim() + extra_dims
    agent = agent_dim + dims if agent_dim < 0 else agent_dim
    if agent < 0 or agent >= log_prob.dim():
        raise ValueError(
            f"agent_dim: expected a dimension of the log-probability, whose shape is {list(log_prob.shape)}, got {agent_dim}"
        )
    return agent, extra_dims


def time_and_agent_dims(estimator: ValueEstimator, reward: Tensor, log_prob: Tensor) -> Tuple[int, int]:
    """Returns the dimension of time and the dimension of agents, -1 without several agents, in the tensors of a rollout.

    ``reward`` and ``log_prob``: as the loss reads them; only their shapes are used.
    """
    if not estimator.several_agents:
        return estimator.time_dim % max(reward.dim(), 1), -1
    agent, extra_dims = agents_layout(log_prob, estimator.agent_dim, estimator.time_dim)
    return estimator.time_dim % (log_prob.dim() + extra_dims), agent


def _check_like_reward(name: str, flag: Optional[Tensor], reward: Tensor) -> None:
    """Raises ValueError unless ``flag`` is None or has the shape of ``reward``."""
    if flag is not None and flag.shape != reward.shape:
        raise ValueError(f"{name}: expected the shape of reward, {list(reward.shape)}, got {list(flag.shape)}")


def experience(batch: Batch) -> Tuple[Tensor, Tensor, Tensor]:
    """Returns ``reward``, ``next_observation`` and ``done``. Raises ValueError if one of them is None."""
    reward, next_observation, done = batch.reward, batch.next_observation, batch.done
    if reward is None:
        raise ValueError("reward: expected a tensor if no advantage is given, got None")
    if next_observation is None:
        raise ValueError("next_observation: expected a tensor if no advantage is given, got None")
    if done is None:
        raise ValueError("done: expected a tensor if no advantage is given, got None")
    return reward, next_observation, done


def zero_nonfinite(name: str, tensor: Tensor, mask: Tensor, has_features: bool = False) -> Tensor:
    """Returns ``tensor`` with 0 in place of NaN and infinity at the steps that ``mask`` excludes.

    ``has_features``: whether ``tensor`` has at least one dimension after those of the steps. If it then has no more dimensions than the
    mask of each agent, all agents share it, and a step counts if any agent's mask is True.
    Raises ValueError if the shape of ``mask`` does not fit the leading dimensions of ``tensor``. The message contains ``name``.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(tensor, tuple):
            return tuple(zero_nonfinite(name, part, mask, has_features) for part in tensor)
    if not tensor.is_floating_point():
        return tensor
    if has_features:
        mask = mask.squeeze(-1) if mask.dim() > tensor.dim() else mask
        mask = mask.any(-1, keepdim=True) if mask.dim() == tensor.dim() else mask
    return tensor.masked_fill(~(_counted(name, tensor, mask) | tensor.isfinite()), 0.0)


def replace_uncounted(name: str, tensor: Tensor, mask: Tensor, replacement: Tensor) -> Tensor:
    """Returns ``tensor`` with ``replacement``, which broadcasts to it, at the steps that ``mask`` excludes.

    Errors: see :func:`zero_nonfinite`.
    """
    return torch.where(_counted(name, tensor, mask), tensor, replacement.to(tensor.dtype))


def _counted(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """Returns ``mask`` with as many dimensions as ``tensor``. Errors: see :func:`zero_nonfinite`."""
    counts = mask.squeeze(-1) if mask.dim() > tensor.dim() else mask
    fits = counts.dim() <= tensor.dim()
    for i in range(min(counts.dim(), tensor.dim())):
        if tensor.size(i) == 1 and counts.size(i) > 1:  # all agents share the entry, which counts if any agent's mask is True
            counts = counts.any(i, keepdim=True)
        fits = fits and (counts.size(i) == tensor.size(i) or counts.size(i) == 1)
    if not fits:
        raise ValueError(
            f"mask: expected the leading dimensions of {name}, {list(tensor.shape)}, got {list(mask.shape)}"
            " (an entry that all agents share has size 1 in their dimension)"
        )
    while counts.dim() < tensor.dim():
        counts = counts.unsqueeze(-1)
    return counts


def _zero_nonfinite_or_none(
    name: str, tensor: Optional[Tensor], mask: Optional[Tensor], has_features: bool
) -> Optional[Tensor]:
    """Returns ``zero_nonfinite(name, tensor, mask, has_features)``, or ``tensor`` unchanged if either tensor is None."""
    return tensor if tensor is None or mask is None else zero_nonfinite(name, tensor, mask, has_features)


def per_step(name: str, tensor: Tensor, log_prob: Tensor, agent: int) -> Tensor:
    """Returns ``tensor``, which has one entry for each step, with the dimensions of ``log_prob``, ``[*B]``.

    With several agents (``agent >= 0``), a tensor of the team has size 1 in the dimension ``agent``, or lacks this dimension.
    Raises TypeError if ``tensor`` is not a tensor, and ValueError if its shape fits neither each agent nor the team. The messages
    contain ``name``.
    """
    check_tensor(name, tensor)
    if agent < 0:
        return match_dims(tensor, log_prob)
    each, team = list(log_prob.shape), list(log_prob.shape)
    team[agent] = 1
    lacking = each[:agent] + each[agent + 1 :]
    matched = tensor
    if tensor.dim() == len(each) + 1 and tensor.size(-1) == 1:
        matched = tensor.squeeze(-1)
    elif list(tensor.shape) == lacking:
        matched = tensor.unsqueeze(agent)
    elif tensor.dim() == len(each) and agent < len(each) - 1 and list(tensor.shape) == lacking + [1]:
        matched = tensor.squeeze(-1).unsqueeze(agent)
    if list(matched.shape) != team and list(matched.shape) != each:
        raise ValueError(
            f"{name}: expected {each} or {each + [1]} for each agent, or {lacking} or {lacking + [1]} for the team,"
            f" got {list(tensor.shape)}"
        )
    return matched


def of_each_agent(name: str, tensor: Tensor, log_prob: Tensor, agent: int) -> Tensor:
    """Returns ``per_step(name, tensor, log_prob, agent)``, expanded to the shape of ``log_prob``: each agent gets the team's entry.

    Raises ValueError if the shape does not fit. The message contains ``name``.
    """
    matched = per_step(name, tensor, log_prob, agent)
    if agent >= 0:
        return matched.expand_as(log_prob)
    if matched.dim() < log_prob.dim() and list(matched.shape) == list(log_prob.shape)[: matched.dim()]:
        raise ValueError(
            f"{name}: expected the shape of log_prob, {list(log_prob.shape)}, or an estimator of several agents ('magae') for a"
            f" {name} of the team, got {list(tensor.shape)}"
        )
    check_shape(name, matched, log_prob)
    return matched


def like_values(name: str, tensor: Tensor, values: Tensor, agent: int) -> Tensor:
    """Returns ``tensor``, a result of :func:`per_step`, with the shape of the critic's ``values``, of each agent or of the team.

    Raises ValueError if ``tensor`` has an entry for each agent and ``values`` has not.
    """
    if tensor.size(agent) != 1 and values.size(agent) == 1:
        raise ValueError(
            f"{name}: expected one entry for all agents, {list(values.shape)}, because critic_network returns one value for all agents,"
            f" got one for each agent, {list(tensor.shape)} (then the critic must return {list(tensor.shape)} too)"
        )
    return tensor.expand_as(values)


def like_values_or_none(name: str, tensor: Optional[Tensor], values: Tensor, agent: int) -> Optional[Tensor]:
    """Returns ``like_values(name, tensor, values, agent)``, or None if ``tensor`` is None."""
    return None if tensor is None else like_values(name, tensor, values, agent)


def mask_of_values(mask: Optional[Tensor], values: Tensor, agent: int) -> Optional[Tensor]:
    """Returns ``mask``, ``[*B]``, for the critic's ``values``: a step of the team counts if it counts for any agent."""
    if mask is None or agent < 0 or values.size(agent) == mask.size(agent):
        return mask
    return mask.any(agent, keepdim=True)


def match_dims(tensor: Tensor, reference: Tensor) -> Tensor:
    """Adds or removes a last dimension of size 1 so that ``tensor`` has as many dimensions as ``reference``.

    Returns ``tensor`` unchanged if this cannot make the numbers of dimensions equal.
    """
    if tensor.dim() == reference.dim() + 1 and tensor.size(-1) == 1:
        return tensor.squeeze(-1)
    if tensor.dim() + 1 == reference.dim() and reference.size(-1) == 1:
        return tensor.unsqueeze(-1)
    return tensor


def _per_step_or_none(name: str, tensor: Optional[Tensor], log_prob: Tensor, agent: int) -> Optional[Tensor]:
    """Returns ``per_step(name, tensor, log_prob, agent)``, or None if ``tensor`` is None."""
    return None if tensor is None else per_step(name, tensor, log_prob, agent)


def laid_out(tensor: Tensor, extra_dims: int) -> Tensor:
    """Returns ``tensor``, ``[*B]``, with the dimensions of the reward that the user passed, see ``extra_dims`` of :class:`Batch`."""
    if extra_dims == 1:
        return tensor.unsqueeze(-1)
    return tensor.squeeze(-1) if extra_dims == -1 else tensor


def laid_out_or_none(tensor: Optional[Tensor], extra_dims: int) -> Optional[Tensor]:
    """Returns ``laid_out(tensor, extra_dims)``, or None if ``tensor`` is None."""
    return None if tensor is None else laid_out(tensor, extra_dims)


def checked_values(values: Tensor, reference: Tensor, name: str, agent: int) -> Tensor:
    """Returns the critic's ``values`` as :func:`per_step` does.

    Raises ValueError unless they have the shape of ``reference``, with or without a last dimension of 1, or, with several agents, a shape
    of the team.
    """
    matched = per_step("critic_network", values, reference, agent)
    if agent < 0 and matched.shape != reference.shape:
        raise ValueError(
            f"critic_network: expected values of the shape of {name}, {list(reference.shape)}, with or without a last dimension of 1,"
            f" got {list(values.shape)}"
        )
    return matched
