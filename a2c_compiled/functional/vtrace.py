"""V-trace: off-policy targets and advantages."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, check_steps, coefficient, last_step, time_dimension
from a2c_compiled.functional.results import ValueEstimate
from a2c_compiled.ops import linear_scan


def vtrace_advantage_estimate(
    gamma: Coefficient,
    log_pi: Tensor,
    log_mu: Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rho_thresh: Coefficient = 1.0,
    c_thresh: Coefficient = 1.0,
    time_dim: int = -2,
) -> ValueEstimate:
    r"""V-trace: targets for the policy :math:`\pi` from the data of another, :math:`\mu`.

    .. math::
        \rho_t &= \min(\bar\rho, \pi/\mu), \quad c_t = \min(\bar c, \pi/\mu) \\
        \delta_t &= \rho_t \big( r_t + \gamma (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t) \big) \\
        v_t &= V(s_t) + \delta_t + \gamma c_t (1 - \text{done}_t)\, (v_{t+1} - V(s_{t+1})) \\
        A_t &= \rho_t \big( r_t + \gamma (1 - \text{terminated}_t)\, v_{t+1} - V(s_t) \big)

    where :math:`v_{t+1}` is the true next value :math:`V(s_{t+1})` at every ``done`` and at the last step.

    Args:
        gamma: discount.
        log_pi: log-probability of the action under the policy that is learnt, of the shape of ``reward``.
        log_mu: log-probability of the action under the policy that acted.
        state_value, next_state_value: :math:`V(s_t)` and :math:`V(s_{t+1})`.
        rho_thresh: :math:`\bar\rho`; decides which value function is the fixed point.
        c_thresh: :math:`\bar c`; trades variance for speed of convergence.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.

    Returns:
        advantage :math:`A` and value_target :math:`v`.

    Source: Espeholt et al., IMPALA, 2018, eq. 1 and section 4.2.
    """
    check_steps(
        reward,
        {"done": done},
        {"state_value": state_value, "next_state_value": next_state_value, "log_pi": log_pi, "log_mu": log_mu},
        terminated,
    )
    dim = time_dimension(reward, time_dim)
    gamma_ = coefficient("gamma", gamma, reward)
    no_bootstrap = done if terminated is None else terminated
    # Beyond, float32 overflows, and the clip below would send a zero times infinity back.
    ratio = (widen(log_pi) - widen(log_mu)).clamp_max(80.0).exp()
    rho = ratio.clamp_max(coefficient("rho_thresh", rho_thresh, reward))
    c = ratio.clamp_max(coefficient("c_thresh", c_thresh, reward))
    value, next_value, reward_ = widen(state_value), widen(next_state_value), widen(reward)

    delta = rho * (reward_ + gamma_ * next_value.masked_fill(no_bootstrap, 0.0) - value)
    value_target = value + linear_scan(delta, (gamma_ * c).masked_fill(done, 0.0), dim, True)

    # After a `done` the next row in time is another trajectory's.
    cut = done | last_step(done, dim)
    next_target = torch.where(cut, next_value, value_target.roll(-1, dim)).masked_fill(no_bootstrap, 0.0)
    advantage = rho * (reward_ + gamma_ * next_target - value)
    return ValueEstimate(advantage.to(reward.dtype), value_target.to(reward.dtype))
