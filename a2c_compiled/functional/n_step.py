"""Returns of a fixed number of steps."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, coefficient, last_step
from a2c_compiled.functional.td import td_lambda_return_estimate


def n_step_return_estimate(
    gamma: Coefficient,
    n: int,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    r"""n-step return: :math:`G_t = r_t + \gamma r_{t+1} + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n V(s_{t+n})`.

    Shorter where the episode or the data ends before: then it bootstraps from the next value of the last step, but not of a terminated
    one. Costs O(nT) time and memory.

    Args:
        gamma: discount.
        n: number of steps: 1 is TD(0); from T up it is TD(1).
        next_state_value: :math:`V(s_{t+1})`.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Raises:
        ValueError, TypeError: also where ``n`` is less than 1, or no integer.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 7.1.
    """
    done, no_bootstrap, dim = checked_steps(
        reward, done, terminated, {"next_state_value": next_state_value}, time_dim, cu_seqlens
    )
    if not torch.jit.is_scripting():  # noqa: SIM102
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n: expected an integer, got {type(n)}")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    # Each step with the n - 1 that follow it, in a new dimension: the return to the end of each such window is the answer.
    gamma_ = coefficient("gamma", gamma, reward)
    if gamma_.dim() > 0:
        gamma_ = _windows(gamma_.expand_as(reward), n, dim)
    returns = td_lambda_return_estimate(
        gamma_,
        1.0,
        _windows(widen(next_state_value), n, dim),
        _windows(widen(reward), n, dim),
        _windows(done | last_step(done, dim), n, dim),
        _windows(no_bootstrap, n, dim),
        None,
        dim,
    )
    return returns.select(dim, 0).to(reward.dtype)


def _windows(x: Tensor, n: int, dim: int) -> Tensor:
    """``[..., T, ...]`` to ``[..., T, n, ...]``, with zeros behind the last step. (``unfold`` exports for one T alone.)"""
    length = x.size(dim)
    shape = list(x.shape)
    shape[dim] = n - 1
    padded = torch.cat([x, torch.zeros(shape, dtype=x.dtype, device=x.device)], dim)
    steps = torch.arange(length, device=x.device).unsqueeze(-1) + torch.arange(n, device=x.device)
    shape[dim] = length
    shape.insert(len(shape) + dim + 1, n)
    return padded.index_select(dim, steps.reshape(-1)).reshape(shape)
