"""Retrace(lambda)."""

from typing import Optional

from torch import Tensor

from a2c_compiled._precision import clamped_log_ratio, widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, coefficient, last_step
from a2c_compiled.ops import linear_scan


def retrace_return_estimate(
    gamma: Coefficient,
    lmbda: Coefficient,
    log_pi: Tensor,
    log_mu: Tensor,
    action_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    r"""Retrace: targets for the action values of the policy :math:`\pi` from the data of another, :math:`\mu`.

    .. math::
        \delta_t &= r_t + \gamma (1 - \text{terminated}_t)\, \mathbb{E}_\pi Q(s_{t+1}, \cdot) - Q(s_t, a_t) \\
        G_t &= Q(s_t, a_t) + \delta_t + \gamma\, c_{t+1} (1 - \text{done}_t)\, (G_{t+1} - Q(s_{t+1}, a_{t+1})),
            \quad c_t = \lambda \min(1, \pi/\mu)

    Args:
        gamma: discount.
        lmbda: weight of the longer returns, from 0 to 1.
        log_pi: log-probability of the action under the policy that is learnt, of the shape of ``reward``.
        log_mu: log-probability of the action under the policy that acted.
        action_value: :math:`Q(s_t, a_t)`.
        next_state_value: :math:`\mathbb{E}_\pi Q(s_{t+1}, \cdot)`.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Returns:
        :math:`G`, of the shape and dtype of ``reward``.

    Source: Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016, eq. 4.
    """
    values = {"action_value": action_value, "next_state_value": next_state_value, "log_pi": log_pi, "log_mu": log_mu}
    done, no_bootstrap, dim = checked_steps(reward, done, terminated, values, time_dim, cu_seqlens)
    gamma_, lmbda_ = coefficient("gamma", gamma, reward), coefficient("lmbda", lmbda, reward)
    value = widen(action_value)
    delta = widen(reward) + gamma_ * widen(next_state_value).masked_fill(no_bootstrap, 0.0) - value
    cut = done | last_step(done, dim)
    c = (lmbda_ * clamped_log_ratio(log_pi, log_mu).exp().clamp_max(1.0)).roll(-1, dim).masked_fill(cut, 0.0)
    # Masked before the product and after it: NaN in the next episode would reach the gradient of gamma by either factor.
    return (value + linear_scan(delta, (gamma_ * c).masked_fill(cut, 0.0), dim)).to(reward.dtype)
