"""Retrace(lambda) returns."""

from typing import Optional

from torch import Tensor

from a2c_compiled._precision import clamped_log_ratio, widen
from a2c_compiled.functional.arguments import Coefficient, last_step_mask
from a2c_compiled.functional.steps import in_callers_order, masked_product, moved_coefficient, prepare_steps
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
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes Retrace(lambda) returns: off-policy targets for the action values of the policy :math:`\pi`.

    .. math::
        c_t &= \lambda_t \min(1, \pi(a_t|s_t) / \mu(a_t|s_t)) \\
        \delta_t &= r_t + \gamma_t (1 - \text{terminated}_t)\, \mathbb{E}_\pi Q(s_{t+1}, \cdot) - Q(s_t, a_t) \\
        G_t &= Q(s_t, a_t) + \delta_t + \gamma_t\, c_{t+1} (1 - \text{done}_t)\, (G_{t+1} - Q(s_{t+1}, a_{t+1}))

    The behaviour policy :math:`\mu` chose the actions. After the last step, :math:`G - Q` is 0.

    Args:
        lmbda: decay of the trace :math:`\lambda_t`, from 0 to 1, of the same types as ``gamma``.
        log_pi: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the policy :math:`\pi`.
        log_mu: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the behaviour policy :math:`\mu`.
        action_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`Q(s_t, a_t)`.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`\mathbb{E}_\pi Q(s_{t+1}, \cdot)`. At a truncated step
            :math:`s_{t+1}` is the last observation before the reset.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.

    Source: Munos et al., Safe and Efficient Off-Policy Reinforcement Learning, 2016.
    """
    values = {"action_value": action_value, "next_state_value": next_state_value, "log_pi": log_pi, "log_mu": log_mu}
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked)
    gamma_tensor, lmbda_tensor = moved_coefficient("gamma", gamma, steps), moved_coefficient("lmbda", lmbda, steps)
    value, next_value, dim = widen(steps.values["action_value"]), widen(steps.values["next_state_value"]), steps.dim
    log_ratio = clamped_log_ratio(steps.values["log_pi"], steps.values["log_mu"])
    # delta[t] = r[t] + gamma * (1 - terminated[t]) * V(s[t+1]) - Q(s[t], a[t])
    delta = widen(steps.reward) + masked_product(gamma_tensor, next_value, steps.bootstrap_cut) - value
    cut = steps.trace_cut | steps.bootstrap_cut | last_step_mask(steps.trace_cut, dim)
    # c[t+1]; where no next step of the same trajectory exists, the product below does not read it.
    ratio = log_ratio.exp()
    # On policy, the ratio is 1 and has a gradient. In torch 2.15, clamp_max has none there.
    next_c = (lmbda_tensor * ratio.masked_fill(ratio > 1.0, 1.0)).roll(-1, dim)
    # y[t] = delta[t] + gamma * c[t+1] * (1 - done[t]) * y[t+1], with y = G - Q.
    returns = value + linear_scan(delta, masked_product(gamma_tensor, next_c, cut), dim)
    return in_callers_order(returns.to(reward.dtype), steps)
