"""``reverse_scan``, the recurrence ``y[t] = x[t] + decay[t] * y[t+1]``, and ``reward2go``, the discounted return."""

from typing import Dict, Optional

import torch
from torch import Tensor

from a2c_compiled._kinds import check_tensor, flag
from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, coefficient, last_step_mask, time_dimension
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.functional.steps import in_callers_order, kernel_applies, masked_product, moved_operand, prepare_steps
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def reverse_scan(
    x: Tensor,
    decay: Tensor,
    dim: int,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes a first-order linear recurrence in reverse time.

    .. math:: y_t = x_t + a_t\, y_{t+1}

    :math:`y` is 0 after the last step, and after the last step of each packed sequence. The result is differentiable to any order in ``x``
    and ``decay``. Where ``decay`` is exactly 0, neither NaN nor infinity in :math:`y_{t+1}` reaches :math:`y_t`.

    Args:
        x: any shape with at least one dimension, floating. For float16 and bfloat16, sums are float32.
        decay: :math:`a`; must broadcast to ``x`` and have the dtype and device of ``x``.
        dim: dimension of time.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences along ``dim``, then the size of ``dim``;
            see :mod:`a2c_compiled.functional`.
        mask: shape of ``x``, bool: True at included steps. :math:`y` there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold. :math:`y` is 0 at excluded steps. None: all steps are included.
        skip_masked: whether the recurrence passes over excluded steps, to the next included step. False: it ends
            there.

    Returns:
        :math:`y`, with the shape and dtype of ``x``.

    Raises:
        ValueError: ``decay`` does not broadcast to ``x`` or is on another device, ``x`` has no dimension ``dim``, ``mask`` has another
            shape or device than ``x``, or ``cu_seqlens`` has a wrong shape or device.
        TypeError: an argument is not a tensor, ``x`` is not floating, the dtypes of ``x`` and ``decay`` differ, ``mask`` is not bool,
            ``dim`` is not an integer, or ``cu_seqlens`` has a wrong dtype.

    Source: Blelloch, Prefix Sums and Their Applications, 1990, section 1.4 (first-order recurrences).
    """
    # `direct` computes the result for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it
    # returns None, and the code below runs.
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if mask is None and cu_seqlens is None and kernel_applies(mask, skip_masked):
            outputs = direct(scan_forms.LINEAR_SCAN, dim, x, decay)
            if outputs is not None:
                return outputs[0]
    check_tensor("x", x)
    if not torch.jit.is_scripting():
        skip_masked = flag("skip_masked", skip_masked)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    check_tensor("decay", decay)
    if decay.dtype != x.dtype:
        raise TypeError(f"decay: expected the dtype of x, {x.dtype}, got {decay.dtype}")
    if decay.device != x.device:
        raise ValueError(f"decay: expected the device of x, {x.device}, got {decay.device}")
    dim = time_dimension(x, dim, "dim")
    decay_tensor = coefficient("decay", decay, x).to(x.dtype).expand_as(x)
    if mask is None:
        if cu_seqlens is not None:
            decay_tensor = decay_tensor.masked_fill(sequence_ends(cu_seqlens, x, dim), 0.0)
        return linear_scan(x, decay_tensor, dim)
    never = torch.zeros_like(x, dtype=torch.bool)
    steps = prepare_steps(x, never, None, {"decay": decay_tensor}, dim, cu_seqlens, mask, skip_masked, "x")
    return in_callers_order(linear_scan(steps.reward, steps.values["decay"].masked_fill(steps.trace_cut, 0.0), dim), steps)


def reward2go(
    reward: Tensor,
    done: Tensor,
    gamma: Coefficient,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
    next_state_value: Optional[Tensor] = None,
    terminated: Optional[Tensor] = None,
) -> Tensor:
    r"""Computes the discounted return of every step: the discounted sum of the rewards from this step to the end of the episode.

    .. math::
        G_t = r_t + \gamma_t \begin{cases}
            V(s_{t+1}) & \text{at a truncated end} \\
            0 & \text{at any other end} \\
            G_{t+1} & \text{else}
        \end{cases}

    The ends are the ``done`` or ``terminated`` steps, the last step of the data and of each packed sequence, and the steps directly before
    an excluded step. An end is truncated if it is not ``terminated``. :math:`V` is 0 if ``next_state_value`` is None, so rewards after a
    truncated episode count as 0.

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        reward: ``[*B, T, *F]``, floating: :math:`r_t`.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated; the sum ends there.
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``reward``.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T; see :mod:`a2c_compiled.functional`.
        mask: ``[*B, T, *F]``, bool: True at included steps. The results there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold, NaN included. Results at excluded steps are 0. None: all steps are included.
        skip_masked: whether a trace passes over excluded steps, to the next included step. False: it ends there.
        next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`, only read at truncated ends. At a truncated step it is
            the value of the last observation before the reset. None: no bootstrap.
        terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
            ``terminated = done``. Only with ``next_state_value``.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Raises:
        ValueError: a value or flag differs from ``reward`` in shape or device, ``gamma`` does not broadcast to ``reward``, ``time_dim``
            is out of range, ``cu_seqlens`` has a wrong shape or device, or ``terminated`` is given without ``next_state_value``.
        TypeError: an argument has a wrong type or dtype.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 3.9; TorchRL's ``reward2go``.
    """
    # `direct` computes the result for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it returns
    # None, and the code below runs.
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if next_state_value is None and terminated is None and kernel_applies(mask, skip_masked):
            outputs = direct(scan_forms.REWARD2GO, time_dim, gamma, reward, done, mask=mask, cu_seqlens=cu_seqlens)
            if outputs is not None:
                return outputs[0]
    values: Dict[str, Tensor] = {}
    if next_state_value is not None:
        values["next_state_value"] = next_state_value
    elif terminated is not None:
        raise ValueError("next_state_value: expected a tensor, which terminated needs, got None")
    kernel_masks = next_state_value is None
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked, "reward", kernel_masks)
    gamma, rewards, trace_cut = moved_operand("gamma", gamma, steps), steps.reward, steps.trace_cut
    if next_state_value is not None:
        # At a truncated end, the bootstrap is one more reward: r[t] + gamma[t] * V(s[t+1]). The scan is that of returns without bootstrap.
        trace_cut = trace_cut | steps.bootstrap_cut
        no_bootstrap = ~(trace_cut | last_step_mask(trace_cut, steps.dim)) | steps.bootstrap_cut
        rewards = widen(rewards) + masked_product(gamma, widen(steps.values["next_state_value"]), no_bootstrap)
    inputs = gamma, rewards, trace_cut, steps.dim
    returns = _reward2go(*inputs) if torch.jit.is_scripting() else _fused_reward2go(*inputs, mask=steps.kernel_mask)
    if next_state_value is not None:
        returns = returns.to(reward.dtype)  # half-precision rewards were added to the bootstrap in float32
    return in_callers_order(returns, steps)


def _reward2go(gamma: Tensor, reward: Tensor, done: Tensor, dim: int) -> Tensor:
    """Computes the return in differentiable torch operations: the definition of ``_fused_reward2go``."""
    # G[t] = r[t] + gamma * (1 - done[t]) * G[t+1]
    return linear_scan(widen(reward), gamma.masked_fill(done, 0.0), dim).to(reward.dtype)


_fused_reward2go = fused_scan(scan_forms.REWARD2GO, scan_forms.REWARD2GO_BACKWARD, _reward2go)
