"""Temporal-difference returns and advantages: TD(0), TD(lambda) and TD(1)."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._kinds import optional_flag
from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, check_steps, coefficient, is_per_step, last_step_mask
from a2c_compiled.functional.steps import (
    PreparedSteps,
    in_callers_order,
    kernel_applies,
    masked_product,
    moved_coefficient,
    moved_operand,
    prepare_steps,
    zero_where_excluded,
)
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def td0_return_estimate(
    gamma: Coefficient, next_state_value: Tensor, reward: Tensor, terminated: Tensor, mask: Optional[Tensor] = None
) -> Tensor:
    r"""Computes one-step returns, TD(0).

    .. math:: G_t = r_t + \gamma_t (1 - \text{terminated}_t)\, V(s_{t+1})

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the
            last observation before the reset.
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap.
        mask: ``[*B, T, *F]``, bool: True at included steps. Results at excluded steps are 0, whatever values those hold, and so are the
            gradients to them. None: all steps are included.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value or flag differs from ``reward`` in shape or device, or ``gamma`` does not broadcast to ``reward``.
        TypeError: an argument has a wrong type or dtype.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 6.2.
    """
    check_steps(reward, {"terminated": terminated}, {"next_state_value": next_state_value}, None, mask)
    cut = terminated if mask is None else terminated | ~mask
    bootstrap = masked_product(coefficient("gamma", gamma, reward), widen(next_state_value), cut)
    return zero_where_excluded((widen(reward) + bootstrap).to(reward.dtype), mask)


def td0_advantage_estimate(
    gamma: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
) -> Tensor:
    r"""Computes one-step advantages: the TD(0) return minus the value, also called the TD error.

    .. math:: A_t = r_t + \gamma_t (1 - \text{terminated}_t)\, V(s_{t+1}) - V(s_t)

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the
            last observation before the reset.
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated. The function reads these values only if
            ``terminated`` is None.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
            ``terminated = done``.
        mask: ``[*B, T, *F]``, bool: True at included steps. Results at excluded steps are 0, whatever values those hold, and so are the
            gradients to them. None: all steps are included.

    Returns:
        :math:`A`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value or flag differs from ``reward`` in shape or device, or ``gamma`` does not broadcast to ``reward``.
        TypeError: an argument has a wrong type or dtype.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 6.5.
    """
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    bootstrap_cut = done if terminated is None else terminated
    returns = td0_return_estimate(gamma, widen(next_state_value), widen(reward), bootstrap_cut, mask)
    return zero_where_excluded((returns - widen(state_value)).to(reward.dtype), mask)


def td_lambda_return_estimate(
    gamma: Coefficient,
    lmbda: Coefficient,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rolling_gamma: Optional[bool] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes TD(lambda) returns.

    .. math::
        G_t = r_t + \gamma_t \big( (1 - \lambda_t)\, (1 - \text{terminated}_t)\, V(s_{t+1}) + \lambda_t\, G_{t+1} \big)

    :math:`\lambda_t` is 0 at every ``done`` and at the last step, so these steps bootstrap from their own ``next_state_value``. At all
    other steps :math:`\lambda_t` is ``lmbda``. :math:`G_t` is an exponentially weighted mean of the n-step returns.

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        lmbda: decay of the trace :math:`\lambda_t`, of the same types as ``gamma``. 0 gives TD(0), 1 gives TD(1).
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the
            last observation before the reset.
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated; the trace ends there.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
            ``terminated = done``.
        rolling_gamma: how to use ``gamma`` or ``lmbda`` with one entry per step. True or None: entry t applies to step t. False: the
            return of step t uses entry t for all steps from t on. False needs O(T²) time and memory.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T; see :mod:`a2c_compiled.functional`.
        mask: ``[*B, T, *F]``, bool: True at included steps. The results there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold, NaN included. Results at excluded steps are 0. None: all steps are included.
        skip_masked: whether a trace passes over excluded steps, to the next included step. False: it ends there, and
            the step before bootstraps from its own ``next_state_value``.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value or flag differs from ``reward`` in shape or device, a coefficient does not broadcast to ``reward``, ``time_dim``
            is out of range, ``cu_seqlens`` has a wrong shape or device, or ``rolling_gamma`` is False and neither ``gamma`` nor
            ``lmbda`` has one entry per step.
        TypeError: an argument has a wrong type or dtype.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.18.
    """
    # `direct` computes the result for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it returns
    # None, and the code below runs.
    if not torch.jit.is_scripting():
        rolls = rolling_gamma is None or rolling_gamma is True
        if rolls and kernel_applies(mask, skip_masked):
            operands = gamma, lmbda, next_state_value, reward, done, done if terminated is None else terminated
            outputs = direct(scan_forms.TD_LAMBDA, time_dim, *operands, mask=mask, cu_seqlens=cu_seqlens)
            if outputs is not None:
                return outputs[0]
    values = {"next_state_value": next_state_value}
    rolls = rolling_gamma is None or rolling_gamma
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked, "reward", rolls)
    return in_callers_order(_returns(gamma, lmbda, steps, rolling_gamma), steps)


def _returns(gamma: Coefficient, lmbda: Coefficient, steps: PreparedSteps, rolling_gamma: Optional[bool]) -> Tensor:
    """Computes the TD(lambda) return in the order of ``steps``."""
    reward, next_value = steps.reward, steps.values["next_state_value"]
    if not torch.jit.is_scripting():
        rolling_gamma = optional_flag("rolling_gamma", rolling_gamma)
    if rolling_gamma is not None and not rolling_gamma:
        if not (is_per_step(gamma, reward, steps.dim) or is_per_step(lmbda, reward, steps.dim)):
            raise ValueError(
                "rolling_gamma: expected True if neither gamma nor lmbda has one entry per step"
                f" (shape {list(reward.shape)}), got False"
            )
        coefficients = moved_coefficient("gamma", gamma, steps), moved_coefficient("lmbda", lmbda, steps)
        inputs = (*coefficients, next_value, reward, steps.trace_cut, steps.bootstrap_cut, steps.dim)
        return _td_lambda_from_each_start(*inputs)
    inputs = (
        moved_operand("gamma", gamma, steps),
        moved_operand("lmbda", lmbda, steps),
        next_value,
        reward,
        steps.trace_cut,
        steps.bootstrap_cut,
        steps.dim,
    )
    return _td_lambda(*inputs) if torch.jit.is_scripting() else _fused_td_lambda(*inputs, mask=steps.kernel_mask)


def _td_lambda_from_each_start(
    gamma: Tensor, lmbda: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor, dim: int
) -> Tensor:
    """Computes the returns for ``rolling_gamma=False`` with T scans in a new leading dimension.

    Scan k uses ``gamma[k]`` and ``lmbda[k]`` at all steps. Its result at step k is the return of step k.
    """
    shape = [reward.size(dim)] + list(reward.shape)
    scans = _td_lambda(
        gamma.expand_as(reward).movedim(dim, 0).unsqueeze(dim),
        lmbda.expand_as(reward).movedim(dim, 0).unsqueeze(dim),
        widen(next_state_value).expand(shape),
        widen(reward).expand(shape),
        done,
        terminated,
        dim,
    )
    return torch.diagonal(scans, 0, 0, dim).movedim(-1, dim).to(reward.dtype)


def _td_lambda(
    gamma: Tensor, lmbda: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor, dim: int
) -> Tensor:
    """Computes the return in differentiable torch operations: the definition of ``_fused_td_lambda``."""
    cut = done | terminated | last_step_mask(done, dim)
    trace = lmbda.masked_fill(cut, 0.0)
    x = widen(reward) + masked_product(gamma, widen(next_state_value), terminated) * (1.0 - trace)
    # G[t] = x[t] + gamma * trace[t] * G[t+1], with x[t] = r[t] + gamma * (1 - trace[t]) * (1 - terminated[t]) * V(s[t+1])
    return linear_scan(x, masked_product(gamma, trace, cut).expand_as(x), dim).to(reward.dtype)


_fused_td_lambda = fused_scan(scan_forms.TD_LAMBDA, scan_forms.TD_LAMBDA_BACKWARD, _td_lambda)


def td_lambda_advantage_estimate(
    gamma: Coefficient,
    lmbda: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rolling_gamma: Optional[bool] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes TD(lambda) advantages: the TD(lambda) return minus the value.

    .. math:: A_t = G_t - V(s_t)

    :math:`G` is the result of :func:`td_lambda_return_estimate`.

    Args:
        state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.

    Returns:
        :math:`A`, with the shape and dtype of ``reward``.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.td_lambda_return_estimate`.

    Source: TorchRL's ``td_lambda_advantage_estimate``; Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.18.
    """
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    next_value, wide_reward = widen(next_state_value), widen(reward)
    returns = td_lambda_return_estimate(
        gamma, lmbda, next_value, wide_reward, done, terminated, rolling_gamma, time_dim, cu_seqlens, mask, skip_masked
    )
    return zero_where_excluded((returns - widen(state_value)).to(reward.dtype), mask)


def td1_return_estimate(
    gamma: Coefficient,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rolling_gamma: Optional[bool] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes TD(1) returns: the discounted rewards to the end of the episode or of the data, plus a bootstrap.

    .. math::
        G_t = r_t + \gamma_t\, (1 - \text{done}_t)\, G_{t+1} + \gamma_t\, (\text{done}_t - \text{terminated}_t)\, V(s_{t+1})

    The last step of the data, and of each packed sequence, counts as ``done`` here and bootstraps, unless the step is ``terminated``. With
    ``rolling_gamma=False``, as in TorchRL, such a step does not bootstrap unless its flag ``done`` is True. The function calls
    :func:`td_lambda_return_estimate` with ``lmbda=1``.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.td_lambda_return_estimate`.

    Source: TorchRL's ``td1_return_estimate``; Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.18 with lambda = 1.
    """
    if rolling_gamma is None or rolling_gamma:
        return td_lambda_return_estimate(
            gamma, 1.0, next_state_value, reward, done, terminated, rolling_gamma, time_dim, cu_seqlens, mask, skip_masked
        )
    values = {"next_state_value": next_state_value}
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked)
    not_done_end = (steps.trace_cut | last_step_mask(done, steps.dim)) & ~steps.done
    steps.values["next_state_value"] = steps.values["next_state_value"].masked_fill(not_done_end, 0.0)
    return in_callers_order(_returns(gamma, 1.0, steps, rolling_gamma), steps)


def td1_advantage_estimate(
    gamma: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rolling_gamma: Optional[bool] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes TD(1) advantages: the TD(1) return minus the value.

    .. math:: A_t = G_t - V(s_t)

    :math:`G` is the result of :func:`td1_return_estimate`.

    Args:
        state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.

    Returns:
        :math:`A`, with the shape and dtype of ``reward``.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.td_lambda_return_estimate`.

    Source: TorchRL's ``td1_advantage_estimate``; Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.18 with lambda = 1.
    """
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    next_value, wide_reward = widen(next_state_value), widen(reward)
    returns = td1_return_estimate(
        gamma, next_value, wide_reward, done, terminated, rolling_gamma, time_dim, cu_seqlens, mask, skip_masked
    )
    return zero_where_excluded((returns - widen(state_value)).to(reward.dtype), mask)
