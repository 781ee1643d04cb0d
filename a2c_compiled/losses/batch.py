"""Checks the inputs of the loss and brings them to one shape. TorchScript compiles this file.

Steps that the mask excludes may hold NaN, infinity or actions that the distribution lacks. In observations, rewards and
``sample_log_prob``, :func:`zero_nonfinite` replaces NaN and infinity by 0. In actions and distribution parameters,
:func:`replace_uncounted` replaces everything. ``losses/a2c.py`` sets the other tensors to 0 at these steps.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled.losses.a2c import check_mask, check_shape


class Batch(NamedTuple):
    """The arguments of ``A2CLoss.forward`` except ``action`` and ``noise``.

    After :func:`shaped`, every per-step tensor has the shape ``[*B]`` of the log-probability. But with an estimator of several agents,
    ``reward``, ``done``, ``terminated``, ``steps_to_next_obs`` and ``group`` keep their shapes, because they may lack the dimension of
    agents.
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
    extra_dims: int = 0
    cu_seqlens: Optional[Tensor] = None  # [S + 1]: starts of packed sequences along time, then T


def check_action(action: Tensor, mask: Optional[Tensor]) -> None:
    """Raises TypeError if ``action`` is not a tensor or ``mask`` is not bool, ValueError if ``action`` requires grad."""
    if not isinstance(action, Tensor):
        raise TypeError(f"action: expected a tensor, got {type(action)}")
    if action.requires_grad:
        raise ValueError("action: expected a tensor that does not require grad, got one that does")
    if mask is not None:
        check_mask(mask)


def shaped(batch: Batch, observation: Tensor, log_prob: Tensor, several_agents: bool) -> Batch:
    """Returns ``batch`` with the shapes that :class:`Batch` describes.

    At the steps that the mask excludes, 0 replaces NaN and infinity in ``reward``, ``next_observation`` and ``sample_log_prob``.
    ``observation``, the result of :func:`zero_nonfinite`, replaces ``batch.observation``. If ``batch`` has an advantage, the fields that
    only the value estimator reads become None.
    """
    mask = batch.mask
    sample_log_prob = _zero_nonfinite_or_none("sample_log_prob", batch.sample_log_prob, mask)
    state_value = _match_dims_or_none("state_value", batch.state_value, log_prob)
    sample_log_prob = _match_dims_or_none("sample_log_prob", sample_log_prob, log_prob)
    if mask is not None:
        mask = match_dims(mask, log_prob)
        check_shape("mask", mask, log_prob)
    advantage = batch.advantage
    if advantage is not None:  # the loss then reads neither rewards nor next observations
        _check_tensor("advantage", advantage)
        advantage = match_dims(advantage, log_prob)
        value_target = _match_dims_or_none("value_target", batch.value_target, log_prob)
        return Batch(observation, None, None, None, None, advantage, value_target, state_value, sample_log_prob, mask)
    reward = _zero_nonfinite_or_none("reward", batch.reward, batch.mask)
    next_observation = _zero_nonfinite_or_none("next_observation", batch.next_observation, batch.mask)
    done, terminated, steps, group = batch.done, batch.terminated, batch.steps_to_next_obs, batch.group
    extra_dims = 0
    if reward is not None and not several_agents:
        # These checks precede the reshaping: with shapes [T, N, 1] and [T, N], time_dim=-2 would mean different dimensions.
        has_same_length = list(reward.shape[:1]) == list(log_prob.shape[:1])
        if has_same_length:  # otherwise the reward has the wrong shape, which a later check reports
            _check_like_reward("done", done, reward)
            _check_like_reward("terminated", terminated, reward)
        dims_as_passed = reward.dim()
        reward = match_dims(reward, log_prob)
        extra_dims = dims_as_passed - reward.dim()
        done, terminated = _match_dims_or_none("done", done, log_prob), _match_dims_or_none("terminated", terminated, log_prob)
        steps, group = _match_dims_or_none("steps_to_next_obs", steps, log_prob), _match_dims_or_none("group", group, log_prob)
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
    )


def _check_like_reward(name: str, flag: Optional[Tensor], reward: Tensor) -> None:
    """Raises TypeError or ValueError unless ``flag`` is None or a tensor with the shape of ``reward``."""
    if flag is not None:
        _check_tensor(name, flag)
        if flag.shape != reward.shape:
            raise ValueError(f"{name}: expected the shape of reward, {list(reward.shape)}, got {list(flag.shape)}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless ``tensor`` is a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor)}")


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


def zero_nonfinite(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """Returns ``tensor`` with 0 in place of NaN and infinity at the steps that ``mask`` excludes.

    Raises ValueError if the shape of ``mask`` does not fit the leading dimensions of ``tensor``. The message contains ``name``.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(tensor, tuple):
            return tuple(zero_nonfinite(name, part, mask) for part in tensor)
    if not tensor.is_floating_point():
        return tensor
    return tensor.masked_fill(~(_counted(name, tensor, mask) | tensor.isfinite()), 0.0)


def replace_uncounted(name: str, tensor: Tensor, mask: Tensor, replacement: Tensor) -> Tensor:
    """Returns ``tensor`` with ``replacement``, which broadcasts to it, at the steps that ``mask`` excludes.

    Errors: see :func:`zero_nonfinite`.
    """
    return torch.where(_counted(name, tensor, mask), tensor, replacement.to(tensor.dtype))


def _counted(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """Returns ``mask`` with as many dimensions as ``tensor``. Errors: see :func:`zero_nonfinite`."""
    counts = mask.squeeze(-1) if mask.dim() > tensor.dim() else mask
    for i in range(counts.dim()):
        if tensor.size(i) == 1 and counts.size(i) > 1:  # all agents share the entry, which counts if any agent's mask is True
            counts = counts.any(i, keepdim=True)
        if counts.size(i) != tensor.size(i) and counts.size(i) != 1:
            raise ValueError(f"mask: expected the leading dimensions of {name}, {list(tensor.shape)}, got {list(mask.shape)}")
    while counts.dim() < tensor.dim():
        counts = counts.unsqueeze(-1)
    return counts


def _zero_nonfinite_or_none(name: str, tensor: Optional[Tensor], mask: Optional[Tensor]) -> Optional[Tensor]:
    """Returns ``zero_nonfinite(name, tensor, mask)``, or ``tensor`` unchanged if either is None."""
    return tensor if tensor is None or mask is None else zero_nonfinite(name, tensor, mask)


def match_dims(tensor: Tensor, reference: Tensor) -> Tensor:
    """Adds or removes a last dimension of size 1 so that ``tensor`` has as many dimensions as ``reference``.

    Returns ``tensor`` unchanged if this cannot make the numbers of dimensions equal.
    """
    if tensor.dim() == reference.dim() + 1 and tensor.size(-1) == 1:
        return tensor.squeeze(-1)
    if tensor.dim() + 1 == reference.dim() and reference.size(-1) == 1:
        return tensor.unsqueeze(-1)
    return tensor


def _match_dims_or_none(name: str, tensor: Optional[Tensor], reference: Tensor) -> Optional[Tensor]:
    """Returns ``match_dims(tensor, reference)``, or None if ``tensor`` is None. Raises TypeError if it is not a tensor."""
    if tensor is None:
        return None
    _check_tensor(name, tensor)
    return match_dims(tensor, reference)


def laid_out(tensor: Tensor, extra_dims: int) -> Tensor:
    """Returns ``tensor``, ``[*B]``, with the dimensions of the reward that the user passed, see ``extra_dims`` of :class:`Batch`."""
    if extra_dims == 1:
        return tensor.unsqueeze(-1)
    return tensor.squeeze(-1) if extra_dims == -1 else tensor


def laid_out_or_none(tensor: Optional[Tensor], extra_dims: int) -> Optional[Tensor]:
    """Returns ``laid_out(tensor, extra_dims)``, or None if ``tensor`` is None."""
    return None if tensor is None else laid_out(tensor, extra_dims)


def check_values(values: Tensor, reference: Tensor, name: str) -> None:
    """Raises ValueError unless the critic's ``values`` have the shape of ``reference``, with or without a last dimension of 1."""
    if match_dims(values, reference).shape != reference.shape:
        raise ValueError(
            f"critic_network: expected values of the shape of {name}, {list(reference.shape)}, with or without a last dimension of 1,"
            f" got {list(values.shape)}"
        )
