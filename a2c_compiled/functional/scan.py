"""The reverse-time scan, which all estimators use, and the discounted return."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, checked_steps, coefficient, operand, time_dimension
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def reverse_scan(x: Tensor, decay: Tensor, dim: int, cu_seqlens: Optional[Tensor] = None) -> Tensor:
    r"""Computes a first-order linear recurrence in reverse time.

    .. math:: y_t = x_t + a_t\, y_{t+1}

    :math:`y` is 0 after the last step. The result is differentiable to any order in ``x`` and ``decay``. Where ``decay`` is exactly 0,
    nothing passes: neither NaN nor infinity in :math:`y_{t+1}` reaches :math:`y_t`.

    Args:
        x: any shape with at least one dimension, floating. float16 and bfloat16 are accumulated in float32.
        decay: :math:`a`; it broadcasts to ``x`` and has the dtype and device of ``x``.
        dim: dimension of time.
        cu_seqlens: ``[S + 1]``, int32 or int64: start of each packed sequence along ``dim``, see :mod:`a2c_compiled.functional`.

    Returns:
        :math:`y`, with the shape and dtype of ``x``.

    Raises:
        ValueError: ``decay`` does not broadcast to ``x`` or is on another device, ``x`` has no dimension ``dim``, or ``cu_seqlens`` has
            a wrong shape or device.
        TypeError: an argument is not a tensor, ``x`` is not floating, the dtypes of ``x`` and ``decay`` differ, ``dim`` is not an
            integer, or ``cu_seqlens`` has a wrong dtype.

    Source: Blelloch, Prefix Sums and Their Applications, 1990, section 1.4 (first-order recurrences).
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
    r"""Computes the discounted return of every step: the sum of the rewards from this step to the end of the episode.

    .. math:: G_t = r_t + \gamma (1 - \text{done}_t)\, G_{t+1}

    :math:`G` is 0 after the last step. No value bootstraps a truncated episode.

    Args:
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: the last step of an episode.
        gamma: discount factor; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: start of each packed sequence, see :mod:`a2c_compiled.functional`.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a shape, a device or ``time_dim`` is wrong.
        TypeError: a dtype or the type of an argument is wrong.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 3.9; TorchRL's ``reward2go``.
    """
    # Fast path: calls the CPU kernel directly. It returns None where that is not possible; the code below then checks and dispatches.
    if not torch.jit.is_scripting():  # noqa: SIM102
        if cu_seqlens is None:
            outputs = direct(scan_forms.REWARD2GO, time_dim, gamma, reward, done)
            if outputs is not None:
                return outputs[0]
    done, _, dim = checked_steps(reward, done, None, {}, time_dim, cu_seqlens)
    gamma_ = operand("gamma", gamma, reward)
    if torch.jit.is_scripting():
        return _reward2go(gamma_, reward, done, dim)
    return _fused_reward2go(gamma_, reward, done, dim)


def _reward2go(gamma: Tensor, reward: Tensor, done: Tensor, dim: int) -> Tensor:
    # G[t] = r[t] + gamma * (1 - done[t]) * G[t+1]
    return linear_scan(widen(reward), gamma.masked_fill(done, 0.0), dim).to(reward.dtype)


_fused_reward2go = fused_scan(scan_forms.REWARD2GO, scan_forms.REWARD2GO_BACKWARD, _reward2go)
