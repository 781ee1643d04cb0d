"""n-step returns."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._kinds import integer
from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, last_step_mask
from a2c_compiled.functional.steps import in_callers_order, moved_coefficient, prepare_steps
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
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes n-step returns.

    .. math:: G_t = r_t + \gamma r_{t+1} + \dots + \gamma^{m-1} r_{t+m-1} + \gamma^m (1 - \text{terminated}_{t+m-1})\, V(s_{t+m})

    :math:`m` is ``n``, or less if the episode or the data ends earlier: the last step of the sum is then the first step from
    ``t`` on that is ``done`` or ``terminated``, or the last step of the data or of the packed sequence. The function needs O(nT) time
    and memory.

    Args:
        gamma: discount factor :math:`\gamma`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
            If ``gamma`` has one entry per step, :math:`\gamma^k` becomes the product of the entries of the k steps from ``t`` on.
        n: number of rewards before the bootstrap, at least 1. 1 gives TD(0); T or more gives TD(1).

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: ``n`` is less than 1.
        TypeError: ``n`` is not an integer.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 7.1.
    """
    values = {"next_state_value": next_state_value}
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked)
    dim = steps.dim
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if type(n) is not int:
            n = integer("n", n)
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    # A window holds step t and the n - 1 steps after it: [..., T, n, ...]. In the windows, the negative dim has size n.
    # G at index 0 of window t is the n-step return of step t.
    gamma_tensor = moved_coefficient("gamma", gamma, steps)
    if gamma_tensor.dim() > 0:
        gamma_tensor = _windows(gamma_tensor.expand_as(reward), n, dim)
    returns = td_lambda_return_estimate(
        gamma_tensor,
        1.0,  # lmbda
        _windows(widen(steps.values["next_state_value"]), n, dim),
        _windows(widen(steps.reward), n, dim),
        _windows(steps.trace_cut | steps.bootstrap_cut | last_step_mask(steps.trace_cut, dim), n, dim),
        _windows(steps.bootstrap_cut, n, dim),
        None,  # rolling_gamma
        dim,
    )
    return in_callers_order(returns.select(dim, 0).to(reward.dtype), steps)


def _windows(x: Tensor, n: int, dim: int) -> Tensor:
    """Returns, for each step of ``x``, the n steps from this step on, with zeros after the last step.

    ``x``: ``[..., T, ...]``. Result: ``[..., T, n, ...]``. The code does not call ``Tensor.unfold``, whose exported graph has a fixed T.
    """
    length = x.size(dim)
    shape = list(x.shape)
    shape[dim] = n - 1
    padded = torch.cat([x, torch.zeros(shape, dtype=x.dtype, device=x.device)], dim)
    steps = torch.arange(length, device=x.device).unsqueeze(-1) + torch.arange(n, device=x.device)
    shape[dim] = length
    shape.insert(len(shape) + dim + 1, n)
    return padded.index_select(dim, steps.reshape(-1)).reshape(shape)
