"""The primitive, and the return that is nothing but the primitive."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, coefficient, operand, time_dimension
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def reverse_scan(x: Tensor, decay: Tensor, dim: int, cu_seqlens: Optional[Tensor] = None) -> Tensor:
    r"""First-order linear recurrence in reverse time: :math:`y_t = x_t + a_t\, y_{t+1}`, with nothing after the last step.

    Differentiable to any order in both arguments. A decay of exactly zero cuts: not even NaN or infinity passes it.

    Args:
        x: any shape, any floating dtype. Half precision is accumulated in float32.
        decay: :math:`a`, of the dtype of ``x``, broadcastable to it.
        dim: the dimension of time.
        cu_seqlens: where sequences begin that lie end to end along ``dim`` (see the module's text).

    Returns:
        :math:`y`, of the shape and dtype of ``x``.

    Raises:
        ValueError: ``decay`` does not broadcast to ``x`` or is elsewhere, or ``dim`` is not a dimension of ``x``.
        TypeError: a dtype is not floating, or the two differ.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if not isinstance(decay, Tensor):
        raise TypeError(f"decay: expected a tensor, got {type(decay)}")
    if decay.dtype != x.dtype:
        raise TypeError(f"decay: expected the dtype of x, {x.dtype}, got {decay.dtype}")
    if decay.device != x.device:
        raise ValueError(f"decay: expected the device of x, {x.device}, got {decay.device}")
    dim = time_dimension(x, dim)
    decay_ = coefficient("decay", decay, x).to(x.dtype).expand_as(x)
    if cu_seqlens is not None:
        decay_ = decay_.masked_fill(sequence_ends(cu_seqlens, x, dim), 0.0)
    return linear_scan(x, decay_, dim)


def reward2go(
    reward: Tensor, done: Tensor, gamma: Coefficient, time_dim: int = -2, cu_seqlens: Optional[Tensor] = None
) -> Tensor:
    r"""Discounted sum of the rewards to come in the same episode: :math:`G_t = r_t + \gamma (1 - d_t)\, G_{t+1}`.

    Args:
        reward: ``[*B, T, *F]`` with time at ``time_dim``, any floating dtype.
        done: bool, of the shape of ``reward``; true at the last step of each trajectory.
        gamma: discount; a number or a tensor that broadcasts to ``reward``.
        time_dim: the dimension of time.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Returns:
        :math:`G`, of the shape and dtype of ``reward``.

    Raises:
        ValueError, TypeError: as every function here (see the module's text).
    """
    if not torch.jit.is_scripting():  # noqa: SIM102
        if cu_seqlens is None:
            found = direct(scan_forms.REWARD2GO, time_dim, gamma, reward, done)
            if found is not None:
                return found[0]
    done, _, dim = checked_steps(reward, done, None, {}, time_dim, cu_seqlens)
    gamma_ = operand("gamma", gamma, reward)
    if torch.jit.is_scripting():
        return _reward2go(gamma_, reward, done, dim)
    return _fused_reward2go(gamma_, reward, done, dim)


def _reward2go(gamma: Tensor, reward: Tensor, done: Tensor, dim: int) -> Tensor:
    return linear_scan(widen(reward), gamma.masked_fill(done, 0.0), dim).to(reward.dtype)


_fused_reward2go = fused_scan(scan_forms.REWARD2GO, scan_forms.REWARD2GO_BACKWARD, _reward2go)
