"""Generalized advantage estimation."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, operand
from a2c_compiled.functional.value_estimate import ValueEstimate
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def generalized_advantage_estimate(
    gamma: Coefficient,
    lmbda: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
) -> ValueEstimate:
    r"""GAE: an exponentially weighted mean of the n-step advantages.

    .. math::
        \delta_t &= r_t + \gamma (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t) \\
        A_t &= \delta_t + \gamma\lambda (1 - \text{done}_t)\, A_{t+1}

    Args:
        gamma: discount.
        lmbda: weight of the longer returns: 0 is TD(0), 1 the Monte-Carlo return less the value.
        state_value: :math:`V(s_t)`.
        next_state_value: :math:`V(s_{t+1})`, of the real next observation also where an episode was truncated.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Returns:
        advantage :math:`A` and value_target :math:`A + V`.

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016, eq. 16.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102
        if cu_seqlens is None:
            ends = done, done if terminated is None else terminated
            found = direct(scan_forms.GAE, time_dim, gamma, lmbda, state_value, next_state_value, reward, *ends)
            if found is not None:
                return ValueEstimate(*found)
    values = {"state_value": state_value, "next_state_value": next_state_value}
    done, no_bootstrap, dim = checked_steps(reward, done, terminated, values, time_dim, cu_seqlens)
    gamma_, lmbda_ = operand("gamma", gamma, reward), operand("lmbda", lmbda, reward)
    if torch.jit.is_scripting():
        advantage, value_target = _gae(gamma_, lmbda_, state_value, next_state_value, reward, done, no_bootstrap, dim)
        return ValueEstimate(advantage, value_target)
    return ValueEstimate(*_fused_gae(gamma_, lmbda_, state_value, next_state_value, reward, done, no_bootstrap, dim))


def _gae(
    gamma: Tensor,
    lmbda: Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    dim: int,
) -> Tuple[Tensor, Tensor]:
    value = widen(state_value)
    delta = widen(reward) + gamma * widen(next_state_value).masked_fill(terminated, 0.0) - value
    advantage = linear_scan(delta, (gamma * lmbda).masked_fill(done, 0.0), dim)
    return advantage.to(reward.dtype), (advantage + value).to(reward.dtype)


_fused_gae = fused_scan(scan_forms.GAE, scan_forms.GAE_BACKWARD, _gae)
