"""Temporal-difference returns and advantages: one step, lambda-weighted, to the end."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import (
    Coefficient,
    check_steps,
    checked_steps,
    coefficient,
    is_per_step,
    last_step,
    operand,
    time_dimension,
)
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def td0_return_estimate(gamma: Coefficient, next_state_value: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
    r"""One-step return: :math:`G_t = r_t + \gamma (1 - \text{terminated}_t)\, V(s_{t+1})`.

    Arguments, results and errors: see the module's text.
    """
    check_steps(reward, {"terminated": terminated}, {"next_state_value": next_state_value})
    bootstrap = widen(next_state_value).masked_fill(terminated, 0.0)
    return (widen(reward) + coefficient("gamma", gamma, reward) * bootstrap).to(reward.dtype)


def td0_advantage_estimate(
    gamma: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
) -> Tensor:
    r"""One-step advantage: the one-step return less :math:`V(s_t)`."""
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    no_bootstrap = done if terminated is None else terminated
    returns = td0_return_estimate(gamma, widen(next_state_value), widen(reward), no_bootstrap)
    return (returns - widen(state_value)).to(reward.dtype)


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
) -> Tensor:
    r"""Lambda return: an exponentially weighted mean of the n-step returns.

    .. math::
        G_t = r_t + \gamma \big( (1 - \lambda_t)\, (1 - \text{terminated}_t)\, V(s_{t+1}) + \lambda_t\, G_{t+1} \big)

    where :math:`\lambda_t = \lambda`, but 0 at every ``done`` and at the last step, which bootstrap from their own next value.

    Args:
        gamma: discount.
        lmbda: weight of the longer returns: 0 is TD(0), 1 is TD(1).
        next_state_value: :math:`V(s_{t+1})`.
        rolling_gamma: with a per-step ``gamma`` or ``lmbda``, whether each entry belongs to its own step (True, and
            what None means), or the entry of step ``t`` holds for the whole trajectory from ``t`` on (False; costs
            O(T²) time and memory).
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Raises:
        ValueError: also where ``rolling_gamma`` is False and neither ``gamma`` nor ``lmbda`` has an entry per step.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.18.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102
        if cu_seqlens is None and (rolling_gamma is None or rolling_gamma):
            ends = done, done if terminated is None else terminated
            found = direct(scan_forms.TD_LAMBDA, time_dim, gamma, lmbda, next_state_value, reward, *ends)
            if found is not None:
                return found[0]
    values = {"next_state_value": next_state_value}
    done, no_bootstrap, dim = checked_steps(reward, done, terminated, values, time_dim, cu_seqlens)
    if rolling_gamma is not None and not rolling_gamma:
        if not (is_per_step(gamma, reward, dim) or is_per_step(lmbda, reward, dim)):
            raise ValueError(
                "rolling_gamma: expected True where neither gamma nor lmbda has one entry per step"
                f" (shape {list(reward.shape)}), got False"
            )
        gamma_, lmbda_ = coefficient("gamma", gamma, reward), coefficient("lmbda", lmbda, reward)
        return _td_lambda_from_each_start(gamma_, lmbda_, next_state_value, reward, done, no_bootstrap, dim)
    gamma_, lmbda_ = operand("gamma", gamma, reward), operand("lmbda", lmbda, reward)
    if torch.jit.is_scripting():
        return _td_lambda(gamma_, lmbda_, next_state_value, reward, done, no_bootstrap, dim)
    return _fused_td_lambda(gamma_, lmbda_, next_state_value, reward, done, no_bootstrap, dim)


def _td_lambda_from_each_start(
    gamma: Tensor, lmbda: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor, dim: int
) -> Tensor:
    """One scan per starting step k, all at once in a new leading dimension; step k of scan k is the answer."""
    shape = [reward.size(dim)] + list(reward.shape)
    starts = _td_lambda(
        gamma.expand_as(reward).movedim(dim, 0).unsqueeze(dim),
        lmbda.expand_as(reward).movedim(dim, 0).unsqueeze(dim),
        widen(next_state_value).expand(shape),
        widen(reward).expand(shape),
        done,
        terminated,
        dim,
    )
    return torch.diagonal(starts, 0, 0, dim).movedim(-1, dim).to(reward.dtype)


def _td_lambda(
    gamma: Tensor, lmbda: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor, dim: int
) -> Tensor:
    bootstrap = widen(next_state_value).masked_fill(terminated, 0.0)
    cut = done | last_step(done, dim)
    trace = lmbda.masked_fill(cut, 0.0)
    x = widen(reward) + gamma * bootstrap * (1.0 - trace)
    # Masked once more: beyond a cut may stand NaN, and its product with a zero trace would reach the gradient of gamma.
    return linear_scan(x, (gamma * trace).masked_fill(cut, 0.0).expand_as(x), dim).to(reward.dtype)


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
) -> Tensor:
    r"""Lambda advantage: :func:`td_lambda_return_estimate` less :math:`V(s_t)`."""
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    next_value, reward_ = widen(next_state_value), widen(reward)
    returns = td_lambda_return_estimate(
        gamma, lmbda, next_value, reward_, done, terminated, rolling_gamma, time_dim, cu_seqlens
    )
    return (returns - widen(state_value)).to(reward.dtype)


def td1_return_estimate(
    gamma: Coefficient,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    rolling_gamma: Optional[bool] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    r"""Return to the end of the data or the episode: :func:`td_lambda_return_estimate` with :math:`\lambda = 1`.

    With ``rolling_gamma=False`` a last step that is not ``done`` does not bootstrap: that is TorchRL's definition.
    """
    check_steps(reward, {"done": done}, {"next_state_value": next_state_value}, terminated)
    if rolling_gamma is not None and not rolling_gamma:
        dim = time_dimension(reward, time_dim)
        ends = last_step(done, dim)
        if cu_seqlens is not None:
            ends = ends | sequence_ends(cu_seqlens, done, dim)
        open_end = ends & ~done
        next_state_value = next_state_value.masked_fill(open_end, 0.0)
    return td_lambda_return_estimate(
        gamma, 1.0, next_state_value, reward, done, terminated, rolling_gamma, time_dim, cu_seqlens
    )


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
) -> Tensor:
    r""":func:`td1_return_estimate` less :math:`V(s_t)`."""
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    returns = td1_return_estimate(
        gamma, widen(next_state_value), widen(reward), done, terminated, rolling_gamma, time_dim, cu_seqlens
    )
    return (returns - widen(state_value)).to(reward.dtype)
