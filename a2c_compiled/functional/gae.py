"""Generalized advantage estimation (GAE)."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient
from a2c_compiled.functional.steps import in_callers_order, kernel_applies, masked_product, moved_operand, prepare_steps
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
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> ValueEstimate:
    r"""Computes generalized advantage estimates (GAE).

    .. math::
        \delta_t &= r_t + \gamma_t (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t) \\
        A_t &= \delta_t + \gamma_t \lambda_t (1 - \text{done}_t)\, A_{t+1}

    The recurrence runs backwards in time from :math:`A = 0` after the last step. :math:`A_t` is an exponentially weighted mean of the
    n-step advantages.

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        lmbda: decay of the trace :math:`\lambda_t`, of the same types as ``gamma``. 0 gives the one-step advantage. 1 gives the discounted
            return to the end of the episode or of the data, with its bootstrap, minus the value.
        state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the
            last observation before the reset.
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated; the trace ends there.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
            ``terminated = done``.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T; see :mod:`a2c_compiled.functional`.
        mask: ``[*B, T, *F]``, bool: True at included steps. The results there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold, NaN included. Results at excluded steps are 0. None: all steps are included.
        skip_masked: whether a trace passes over excluded steps, to the next included step. False: it ends there, and
            the step before bootstraps from its own ``next_state_value``.

    Returns:
        :class:`ValueEstimate`: the advantage :math:`A` and the value target :math:`A + V`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value or flag differs from ``reward`` in shape or device, a coefficient does not broadcast to ``reward``, ``time_dim``
            is out of range, or ``cu_seqlens`` has a wrong shape or device.
        TypeError: an argument has a wrong type or dtype.

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016, eq. 16.
    """
    # `direct` computes the results for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it
    # returns None, and the code below runs.
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if kernel_applies(mask, skip_masked):
            operands = gamma, lmbda, state_value, next_state_value, reward, done, done if terminated is None else terminated
            outputs = direct(scan_forms.GAE, time_dim, *operands, mask=mask, cu_seqlens=cu_seqlens)
            if outputs is not None:
                return ValueEstimate(*outputs)
    values = {"state_value": state_value, "next_state_value": next_state_value}
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked, "reward", True)
    coefficients = moved_operand("gamma", gamma, steps), moved_operand("lmbda", lmbda, steps)
    tensors = steps.values["state_value"], steps.values["next_state_value"], steps.reward, steps.trace_cut, steps.bootstrap_cut
    inputs = (*coefficients, *tensors, steps.dim)
    if torch.jit.is_scripting():
        advantage, value_target = _gae(*inputs)
    else:
        advantage, value_target = _fused_gae(*inputs, mask=steps.kernel_mask)
    return ValueEstimate(in_callers_order(advantage, steps), in_callers_order(value_target, steps))


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
    """Computes advantage and value target in differentiable torch operations: the definition of ``_fused_gae``."""
    value = widen(state_value)
    # delta[t] = r[t] + gamma * (1 - terminated[t]) * V(s[t+1]) - V(s[t])
    delta = widen(reward) + masked_product(gamma, widen(next_state_value), terminated) - value
    # A[t] = delta[t] + gamma * lmbda * (1 - done[t]) * A[t+1]; a terminated step counts as done
    advantage = linear_scan(delta, masked_product(gamma, lmbda, done | terminated), dim)
    return advantage.to(reward.dtype), (advantage + value).to(reward.dtype)


_fused_gae = fused_scan(scan_forms.GAE, scan_forms.GAE_BACKWARD, _gae)
