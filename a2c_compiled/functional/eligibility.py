"""Traces that run forward in time: ``eligibility_trace``, and ``episodic_cumsum``, its special case without decay."""

from typing import Dict, Optional

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient
from a2c_compiled.functional.steps import in_callers_order, kernel_applies, masked_product, moved_operand, prepare_steps
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct, fused_scan, linear_scan


def eligibility_trace(
    gamma: Coefficient,
    lmbda: Coefficient,
    x: Tensor,
    done: Tensor,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes accumulating eligibility traces: the decayed sum of the earlier steps of each episode, forward in time.

    .. math:: e_t = x_t + \gamma_{t-1} \lambda_{t-1} (1 - \text{done}_{t-1})\, e_{t-1}

    :math:`e` is 0 before the first step. The result is differentiable to any order in ``x`` and the coefficients.

    ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

    Args:
        gamma: discount factor :math:`\gamma_t`; a number, a one-element tensor, or a tensor that broadcasts to ``x``.
        lmbda: trace decay :math:`\lambda_t`, between 0 and 1; a number, a one-element tensor, or a tensor that broadcasts to ``x``.
        x: ``[*B, T, *F]``, floating: what each step adds to the trace, such as the gradient of its value, or 1.
        done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated. The next step starts a new trace.
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T; see :mod:`a2c_compiled.functional`.
            Each sequence starts a new trace.
        mask: ``[*B, T, *F]``, bool: True at included steps. The results there, and all gradients, equal those of the data without the
            excluded steps, whatever values those hold, NaN included. Results at excluded steps are 0. None: all steps are included.
        skip_masked: whether a trace passes over excluded steps, to the next included step. False: it ends there.

    Returns:
        :math:`e`, with the shape and dtype of ``x``.

    Raises:
        ValueError: ``done`` or ``mask`` differs from ``x`` in shape or device, a coefficient does not broadcast to ``x``, ``time_dim``
            is out of range, or ``cu_seqlens`` has a wrong shape or device.
        TypeError: an argument has a wrong type or dtype.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 12.5.
    """
    # `direct` computes the result for small CPU inputs in one C++ call. For all other inputs (gradients, GPU, wrong arguments) it returns
    # None, and the code below runs.
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if kernel_applies(mask, skip_masked):
            outputs = direct(scan_forms.ELIGIBILITY_TRACE, time_dim, gamma, lmbda, x, done, mask=mask, cu_seqlens=cu_seqlens)
            if outputs is not None:
                return outputs[0]
    values: Dict[str, Tensor] = {}
    steps = prepare_steps(x, done, None, values, time_dim, cu_seqlens, mask, skip_masked, "x", True)
    coefficients = moved_operand("gamma", gamma, steps), moved_operand("lmbda", lmbda, steps)
    inputs = coefficients[0], coefficients[1], steps.reward, steps.trace_cut, steps.dim
    trace = (
        _eligibility_trace(*inputs) if torch.jit.is_scripting() else _fused_eligibility_trace(*inputs, mask=steps.kernel_mask)
    )
    return in_callers_order(trace, steps)


def _eligibility_trace(gamma: Tensor, lmbda: Tensor, x: Tensor, done: Tensor, dim: int) -> Tensor:
    """Computes the trace in differentiable torch operations: the definition of ``_fused_eligibility_trace``."""
    # e[t] = x[t] + gamma * lmbda * (1 - done[t-1]) * e[t-1]
    return linear_scan(widen(x), masked_product(gamma, lmbda, done), dim, False).to(x.dtype)


_fused_eligibility_trace = fused_scan(scan_forms.ELIGIBILITY_TRACE, scan_forms.ELIGIBILITY_TRACE_BACKWARD, _eligibility_trace)


def episodic_cumsum(
    x: Tensor,
    done: Tensor,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes the cumulative sum of ``x`` within each episode, such as the return so far or the number of the step.

    .. math:: s_t = x_t + (1 - \text{done}_{t-1})\, s_{t-1}

    The function calls :func:`eligibility_trace` with ``gamma=1`` and ``lmbda=1``.

    Args:
        x: ``[*B, T, *F]``, floating: what each step adds to the sum.

    Returns:
        :math:`s`, with the shape and dtype of ``x``.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.eligibility_trace`.

    Source: Blelloch, Prefix Sums and Their Applications, 1990, section 1.5 (segmented scans).
    """
    return eligibility_trace(1.0, 1.0, x, done, time_dim, cu_seqlens, mask, skip_masked)
