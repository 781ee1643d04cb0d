"""V-trace: off-policy targets and advantages."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import clamped_log_ratio, widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, last_step, operand
from a2c_compiled.functional.value_estimate import ValueEstimate
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


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
    cu_seqlens: Optional[Tensor] = None,
    pg_rho_thresh: Optional[Coefficient] = None,
    lmbda: Coefficient = 1.0,
) -> ValueEstimate:
    r"""V-trace: targets for the policy :math:`\pi` from the data of another, :math:`\mu`.

    .. math::
        \rho_t &= \min(\bar\rho, \pi/\mu), \quad c_t = \lambda \min(\bar c, \pi/\mu),
            \quad \rho^\text{pg}_t = \min(\bar\rho_\text{pg}, \pi/\mu) \\
        \delta_t &= \rho_t \big( r_t + \gamma (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t) \big) \\
        v_t &= V(s_t) + \delta_t + \gamma c_t (1 - \text{done}_t)\, (v_{t+1} - V(s_{t+1})) \\
        A_t &= \rho^\text{pg}_t \big( r_t + \gamma (1 - \text{terminated}_t)\, (\lambda v_{t+1} + (1 - \lambda) V(s_{t+1})) - V(s_t) \big)

    where :math:`v_{t+1}` is the true next value :math:`V(s_{t+1})` at every ``done`` and at the last step; elsewhere both are those of
    the next row.

    Args:
        gamma: discount.
        log_pi: log-probability of the action under the policy that is learnt, of the shape of ``reward``.
        log_mu: log-probability of the action under the policy that acted.
        state_value, next_state_value: :math:`V(s_t)` and :math:`V(s_{t+1})`.
        rho_thresh: :math:`\bar\rho`; decides which value function is the fixed point.
        c_thresh: :math:`\bar c`; trades variance for speed of convergence.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).
        pg_rho_thresh: :math:`\bar\rho_\text{pg}`, the clip in the advantage; None is ``rho_thresh``.
        lmbda: weight of the longer returns, from 0 to 1.

    Returns:
        advantage :math:`A` and value_target :math:`v`.

    Source: Espeholt et al., IMPALA, 2018, eq. 1, section 4.2 and remark 2.
    """
    if pg_rho_thresh is None:
        pg_rho_thresh = rho_thresh
    if not torch.jit.is_scripting():  # noqa: SIM102
        if cu_seqlens is None:
            coefficients = gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda
            steps = log_pi, log_mu, state_value, next_state_value, reward, done, done if terminated is None else terminated
            found = direct(scan_forms.VTRACE, time_dim, *coefficients, *steps)
            if found is not None:
                return ValueEstimate(*found)
    values = {"state_value": state_value, "next_state_value": next_state_value, "log_pi": log_pi, "log_mu": log_mu}
    done, no_bootstrap, dim = checked_steps(reward, done, terminated, values, time_dim, cu_seqlens)
    gamma_, lmbda_ = operand("gamma", gamma, reward), operand("lmbda", lmbda, reward)
    rho, c = operand("rho_thresh", rho_thresh, reward), operand("c_thresh", c_thresh, reward)
    pg_rho = operand("pg_rho_thresh", pg_rho_thresh, reward)
    if torch.jit.is_scripting():
        advantage, value_target = _vtrace(
            gamma_, rho, c, pg_rho, lmbda_, log_pi, log_mu, state_value, next_state_value, reward, done, no_bootstrap, dim
        )
        return ValueEstimate(advantage, value_target)
    found = gamma_, rho, c, pg_rho, lmbda_, log_pi, log_mu, state_value, next_state_value, reward, done, no_bootstrap
    return ValueEstimate(*_fused_vtrace(*found, dim))


def _vtrace(
    gamma: Tensor,
    rho_thresh: Tensor,
    c_thresh: Tensor,
    pg_rho_thresh: Tensor,
    lmbda: Tensor,
    log_pi: Tensor,
    log_mu: Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    dim: int,
) -> Tuple[Tensor, Tensor]:
    ratio = clamped_log_ratio(log_pi, log_mu).exp()
    rho, c, pg_rho = ratio.clamp_max(rho_thresh), ratio.clamp_max(c_thresh), ratio.clamp_max(pg_rho_thresh)
    value, next_value, reward_ = widen(state_value), widen(next_state_value), widen(reward)

    delta = rho * (reward_ + gamma * next_value.masked_fill(terminated, 0.0) - value)
    correction = linear_scan(delta, (gamma * lmbda * c).masked_fill(done, 0.0), dim)

    # After a `done` the next row in time is another trajectory's.
    cut = done | last_step(done, dim)
    # Each masked by itself: NaN beyond a cut is to reach neither the result nor, through a product with zero, a gradient.
    later_value = value.roll(-1, dim).masked_fill(cut, 0.0)
    later_correction = correction.roll(-1, dim).masked_fill(cut, 0.0)
    next_target = next_value.masked_fill(~cut, 0.0) + later_value + lmbda * later_correction
    next_target = next_target.masked_fill(terminated, 0.0)
    advantage = pg_rho * (reward_ + gamma * next_target - value)
    return advantage.to(reward.dtype), (value + correction).to(reward.dtype)


_fused_vtrace = fused_scan(scan_forms.VTRACE, scan_forms.VTRACE_BACKWARD, _vtrace)
