"""V-trace: off-policy value targets and advantages."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import clamped_log_ratio, widen
from a2c_compiled.functional.arguments import Coefficient, last_step_mask
from a2c_compiled.functional.steps import in_callers_order, kernel_applies, masked_product, moved_operand, prepare_steps
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
    rho_thresh: Optional[Coefficient] = 1.0,
    c_thresh: Optional[Coefficient] = 1.0,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    pg_rho_thresh: Optional[Coefficient] = None,
    lmbda: Coefficient = 1.0,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> ValueEstimate:
    r"""Computes V-trace value targets and advantages for the policy :math:`\pi` from data of a behaviour policy :math:`\mu`.

    .. math::
        \rho_t &= \min(\bar\rho, \pi/\mu), \quad c_t = \lambda_t \min(\bar c, \pi/\mu),
            \quad \rho^\text{pg}_t = \min(\bar\rho_\text{pg}, \pi/\mu) \\
        \delta_t &= \rho_t \big( r_t + \gamma_t (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t) \big) \\
        v_t &= V(s_t) + \delta_t + \gamma_t c_t (1 - \text{done}_t)\, (v_{t+1} - V(s_{t+1})) \\
        A_t &= \rho^\text{pg}_t \big( r_t + \gamma_t (1 - \text{terminated}_t)\, (\lambda_t v_{t+1} + (1 - \lambda_t) V(s_{t+1}))
            - V(s_t) \big)

    :math:`\pi/\mu` is the ratio of the probabilities of :math:`a_t`. In the line of :math:`\delta_t`, :math:`V(s_{t+1})` is
    ``next_state_value`` of step t. In the lines of :math:`v_t` and :math:`A_t`, both :math:`v_{t+1}` and :math:`V(s_{t+1})` belong to
    step t + 1: :math:`V(s_{t+1})` is its ``state_value``. At every ``done`` and at the last step, both are ``next_state_value`` of
    step t instead.

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        log_pi: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the policy :math:`\pi`.
        log_mu: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the behaviour policy :math:`\mu`.
        state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the
            last observation before the reset.
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated; the trace ends there.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
            ``terminated = done``.
        rho_thresh: :math:`\bar\rho`, positive, of the same types as ``gamma``. The threshold determines the value function that the
            targets converge to. None means infinity: no clipping.
        c_thresh: :math:`\bar c`, positive, of the same types as ``gamma``. A smaller value reduces the variance and slows the convergence.
            None means infinity: no clipping.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T; see :mod:`a2c_compiled.functional`.
        pg_rho_thresh: :math:`\bar\rho_\text{pg}`, the threshold in the advantage, of the same types as ``gamma``. None means
            ``rho_thresh``.
        lmbda: decay of the trace :math:`\lambda_t`, from 0 to 1, of the same types as ``gamma``.
        mask: ``[*B, T, *F]``, bool: True at included steps. The results there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold, NaN included. Results at excluded steps are 0. None: all steps are included.
        skip_masked: whether a trace passes over excluded steps, to the next included step. False: it ends there, and
            the step before bootstraps from its own ``next_state_value``.

    Returns:
        :class:`ValueEstimate`: the advantage :math:`A` and the value target :math:`v`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value, log-probability or flag differs from ``reward`` in shape or device, a coefficient does not broadcast to
            ``reward``, ``time_dim`` is out of range, or ``cu_seqlens`` has a wrong shape or device.
        TypeError: an argument has a wrong type or dtype.

    Source: Espeholt et al., IMPALA, 2018, eq. 1, section 4.2 and remark 2. The advantage with ``lmbda`` below 1 bootstraps as in rlax's
    ``vtrace_td_error_and_advantage``.
    """
    if rho_thresh is None:
        rho_thresh = float("inf")
    if c_thresh is None:
        c_thresh = float("inf")
    if pg_rho_thresh is None:
        pg_rho_thresh = rho_thresh
    # `direct` computes the results for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it
    # returns None, and the code below runs.
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if kernel_applies(mask, skip_masked):
            coefficients = gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda
            steps = log_pi, log_mu, state_value, next_state_value, reward, done, done if terminated is None else terminated
            outputs = direct(scan_forms.VTRACE, time_dim, *coefficients, *steps, mask=mask, cu_seqlens=cu_seqlens)
            if outputs is not None:
                return ValueEstimate(*outputs)
    values = {"state_value": state_value, "next_state_value": next_state_value, "log_pi": log_pi, "log_mu": log_mu}
    prepared = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked, "reward", True)
    inputs = (
        moved_operand("gamma", gamma, prepared),
        moved_operand("rho_thresh", rho_thresh, prepared),
        moved_operand("c_thresh", c_thresh, prepared),
        moved_operand("pg_rho_thresh", pg_rho_thresh, prepared),
        moved_operand("lmbda", lmbda, prepared),
        prepared.values["log_pi"],
        prepared.values["log_mu"],
        prepared.values["state_value"],
        prepared.values["next_state_value"],
        prepared.reward,
        prepared.trace_cut,
        prepared.bootstrap_cut,
        prepared.dim,
    )
    if torch.jit.is_scripting():
        advantage, value_target = _vtrace(*inputs)
    else:
        advantage, value_target = _fused_vtrace(*inputs, mask=prepared.kernel_mask)
    return ValueEstimate(in_callers_order(advantage, prepared), in_callers_order(value_target, prepared))


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
    """Computes advantage and value target in differentiable torch operations: the definition of ``_fused_vtrace``."""
    steps = log_pi, log_mu, state_value, next_state_value, reward, done | terminated, terminated
    return vtrace_with_trace_cut(gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda, *steps, dim)


def vtrace_with_trace_cut(
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
    trace_cut: Tensor,
    terminated: Tensor,
    dim: int,
) -> Tuple[Tensor, Tensor]:
    """Computes V-trace with a trace that ends at ``trace_cut`` alone, ``[*B, T, *F]``, bool.

    Other arguments, formula, shapes and dtypes: see :func:`a2c_compiled.functional.vtrace_advantage_estimate`.
    """
    ratio = clamped_log_ratio(log_pi, log_mu).exp()
    rho, c, pg_rho = _clipped(ratio, rho_thresh), _clipped(ratio, c_thresh), _clipped(ratio, pg_rho_thresh)
    value, next_value, wide_reward = widen(state_value), widen(next_state_value), widen(reward)

    # delta[t] = rho[t] * (r[t] + gamma * (1 - terminated[t]) * V(s[t+1]) - V(s[t]))
    delta = rho * (wide_reward + masked_product(gamma, next_value, terminated) - value)
    # v[t] - V(s[t]) = delta[t] + gamma * lmbda * c[t] * (1 - done[t]) * (v[t+1] - V(s[t+1]))
    correction = linear_scan(delta, masked_product(masked_product(gamma, lmbda, trace_cut), c, trace_cut), dim)

    # A[t] = pg_rho[t] * (r[t] + gamma * (1 - terminated[t]) * (lmbda * v[t+1] + (1 - lmbda) * V(s[t+1])) - V(s[t]))
    # After a cut, step t + 1 belongs to another episode: the bootstrap is next_state_value[t] there.
    cut = trace_cut | last_step_mask(trace_cut, dim)
    # NaN beyond a cut must reach neither the result nor a gradient.
    later_value = value.roll(-1, dim).masked_fill(cut, 0.0)
    later_correction = masked_product(lmbda, correction.roll(-1, dim), cut)
    next_target = next_value.masked_fill(~cut, 0.0) + later_value + later_correction
    advantage = pg_rho * (wide_reward + masked_product(gamma, next_target, terminated) - value)
    return advantage.to(reward.dtype), (value + correction).to(reward.dtype)


def _clipped(ratio: Tensor, threshold: Tensor) -> Tensor:
    """Returns ``ratio``, at most ``threshold``. If they are equal, ``ratio`` gets the gradient; ``clamp_max`` of torch 2.15 halves it."""
    return torch.where(ratio > threshold, threshold, ratio)


_fused_vtrace = fused_scan(scan_forms.VTRACE, scan_forms.VTRACE_BACKWARD, _vtrace)
