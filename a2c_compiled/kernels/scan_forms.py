"""The table of forms: the operands of every kernel, in order. The operators and all backends read it.

A form is a linear recurrence along time with its inputs and outputs: elementwise code before the recurrence (prologue) computes ``x`` and
``decay`` from the inputs, and elementwise code after it (epilogue) computes the outputs. Operands are inputs and outputs. Inputs are
coefficients, values and flags.
This file, ``cpu/forms.h`` and ``triton/forms.py`` have one notation: steps are ``t = 0 ... T-1``. ``a if flag[t] else b`` selects ``a`` or
``b``; NaN in the other value has no effect. ``ends[t] = done[t] or terminated[t]``: a terminated step ends the trace even if it is not
marked as done.

Reverse-time scan, with ``y[T] = 0``::

    y[t] = x[t] + decay[t] * y[t+1]

Transposed scan, which runs forward in time, with ``y[-1] = 0``::

    y[t] = x[t] + decay[t-1] * y[t-1]

Each is the gradient of the other. If ``y`` is the reverse-time scan of ``x`` and ``decay``, and ``grad_y`` the gradient of ``y``, then the
chain rule gives::

    grad_x[t] = grad_y[t] + decay[t-1] * grad_x[t-1]
    grad_decay[t] = grad_x[t] * y[t+1]

A backward form computes ``g[t]``, the gradient of the forward form's ``x[t]``, with the transposed scan. To get the gradient of an input,
it multiplies ``g[t]`` by the derivative of the prologue, and adds the gradient that reaches the input through the epilogue alone.
"""

import functools
from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

Names = Tuple[str, ...]


class Form(NamedTuple):
    """The names of a fused scan's operands, and the direction of the scan.

    Values, flags and outputs share one shape, ``[*B, T, *F]``, with time at ``dim``. A coefficient has this shape or is zero-dimensional.
    Values and outputs share one floating dtype. Coefficients have the dtype of the computation: float32 for half precision, else the
    dtype of the values. Flags are bool.
    """

    name: str
    coefficients: Names
    values: Names
    flags: Names
    outputs: Names
    # True: the reverse-time scan. False: the transposed scan.
    reverse: bool
    # The form without a mask, for a form that :func:`masked` made.
    unmasked_name: str = ""

    def empty_outputs(self, values: Sequence[Tensor], flags: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Returns uninitialised tensors for the outputs, with the dtype of the values and the strides of the first flag.

        Flags have the strides of the user's data. A value may have other strides, if it is a gradient or broadcast. For a form without
        flags, the outputs have the strides of the first value.
        """
        first = torch.empty_like(flags[0] if flags else values[0], dtype=values[0].dtype)
        return (first, *[torch.empty_like(first) for _ in self.outputs[1:]])


@functools.cache
def masked(form: Form) -> Form:
    """Returns ``form`` with a last flag, ``mask``, which is False at excluded steps.

    At excluded steps, the values count as 0, whatever they hold, and the outputs are 0. No value passes from an excluded step to another
    step: at excluded steps ``done`` and ``terminated`` count as True, and at the step before an excluded one, ``done`` does.
    """
    return form._replace(name=f"{form.name}_masked", flags=(*form.flags, "mask"), unmasked_name=form.name)


_ENDS = ("done", "terminated")
_GAE = ("gamma", "lmbda")
_VTRACE = ("gamma", "rho_thresh", "c_thresh", "pg_rho_thresh", "lmbda")
_STEP = ("state_value", "next_state_value", "reward")

# y[t] = x[t] + decay[t] * y[t+1]
LINEAR_SCAN = Form("linear_scan", (), ("x", "decay"), (), ("y",), True)
# y[t] = x[t] + decay[t-1] * y[t-1]
LINEAR_SCAN_TRANSPOSED = Form("linear_scan_transposed", (), ("x", "decay"), (), ("y",), False)

# decay[t] = 0 if done[t] else gamma[t]
# returns[t] = reward[t] + decay[t] * returns[t+1]
REWARD2GO = Form("reward2go", ("gamma",), ("reward",), ("done",), ("returns",), True)
# grad_reward[t] = grad_returns[t] + decay[t-1] * grad_reward[t-1]
REWARD2GO_BACKWARD = Form("reward2go_backward", ("gamma",), ("grad_returns",), ("done",), ("grad_reward",), False)

# decay[t] = 0 if done[t] else gamma[t] * lmbda[t]
# trace[t] = x[t] + decay[t-1] * trace[t-1]
ELIGIBILITY_TRACE = Form("eligibility_trace", _GAE, ("x",), ("done",), ("trace",), False)
# grad_x[t] = grad_trace[t] + decay[t] * grad_x[t+1]
ELIGIBILITY_TRACE_BACKWARD = Form("eligibility_trace_backward", _GAE, ("grad_trace",), ("done",), ("grad_x",), True)

# delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
# decay[t] = 0 if ends[t] else gamma[t] * lmbda[t]
# advantage[t] = delta[t] + decay[t] * advantage[t+1]
# value_target[t] = advantage[t] + state_value[t]
GAE = Form("gae", _GAE, _STEP, _ENDS, ("advantage", "value_target"), True)
# g[t] = grad_advantage[t] + grad_value_target[t] + decay[t-1] * g[t-1]: both outputs contain advantage[t]; g is the gradient of delta
# grad_state_value[t] = grad_value_target[t] - g[t]: value_target contains +state_value, delta contains -state_value
# grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * g[t]
# grad_reward[t] = g[t]
GAE_BACKWARD = Form(
    "gae_backward",
    _GAE,
    ("grad_advantage", "grad_value_target"),
    _ENDS,
    ("grad_state_value", "grad_next_state_value", "grad_reward"),
    False,
)

# trace[t] = 0 if ends[t] or t == T-1 else lmbda[t]
# x[t] = reward[t] + gamma[t] * (1 - trace[t]) * (0 if terminated[t] else next_state_value[t])
# decay[t] = gamma[t] * trace[t]
# returns[t] = x[t] + decay[t] * returns[t+1]
TD_LAMBDA = Form("td_lambda", _GAE, ("next_state_value", "reward"), _ENDS, ("returns",), True)
# g[t] = grad_returns[t] + decay[t-1] * g[t-1]: the gradient of x
# grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (1 - trace[t]) * g[t]
# grad_reward[t] = g[t]
TD_LAMBDA_BACKWARD = Form("td_lambda_backward", _GAE, ("grad_returns",), _ENDS, ("grad_next_state_value", "grad_reward"), False)

# ratio[t] = exp(min(log_pi[t] - log_mu[t], LARGEST_LOG_RATIO))
# rho[t], c[t], pg_rho[t] = ratio[t], each clipped to at most rho_thresh[t], c_thresh[t], pg_rho_thresh[t]
# delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
# decay[t] = 0 if ends[t] else gamma[t] * lmbda[t] * c[t]
# y[t] = rho[t] * delta[t] + decay[t] * y[t+1]: the correction of the value
# value_target[t] = state_value[t] + y[t]
# cut[t] = ends[t] or t == T-1
# next_target[t] = next_state_value[t] if cut[t] else state_value[t+1] + lmbda[t] * y[t+1]
# advantage[t] = pg_rho[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
VTRACE = Form("vtrace", _VTRACE, ("log_pi", "log_mu", *_STEP), _ENDS, ("advantage", "value_target"), True)
# sent[t] = 0 if t == 0 or ends[t-1] else grad_advantage[t-1] * pg_rho[t-1] * gamma[t-1]:
#     the gradient that advantage[t-1] sends to next_target[t-1] = state_value[t] + lmbda[t-1] * y[t]
# g[t] = grad_value_target[t] + lmbda[t-1] * sent[t] + decay[t-1] * g[t-1]: the gradient of rho * delta
# grad_rho[t] = g[t] * delta[t]
# grad_pg_rho[t] = grad_advantage[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
# grad_c[t] = 0 if cut[t] else g[t] * gamma[t] * lmbda[t] * y[t+1], where y[t+1] = value_target[t+1] - state_value[t+1]
# grad_ratio[t] = grad_rho[t] + grad_pg_rho[t] + grad_c[t], each only where ratio[t] does not exceed its threshold
# grad_log_pi[t] = grad_ratio[t] * ratio[t], 0 where log_pi[t] - log_mu[t] exceeds LARGEST_LOG_RATIO
# grad_log_mu[t] = -grad_log_pi[t]
# grad_reward[t] = rho[t] * g[t] + pg_rho[t] * grad_advantage[t]
# grad_state_value[t] = grad_value_target[t] + sent[t] - grad_reward[t]
# grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (rho[t] * g[t] + (pg_rho[t] * grad_advantage[t] if cut[t] else 0))
VTRACE_BACKWARD = Form(
    "vtrace_backward",
    _VTRACE,
    ("grad_advantage", "grad_value_target", "log_pi", "log_mu", *_STEP, "value_target"),
    _ENDS,
    ("grad_log_pi", "grad_log_mu", "grad_state_value", "grad_next_state_value", "grad_reward"),
    False,
)

FORMS = (
    LINEAR_SCAN,
    LINEAR_SCAN_TRANSPOSED,
    REWARD2GO,
    REWARD2GO_BACKWARD,
    ELIGIBILITY_TRACE,
    ELIGIBILITY_TRACE_BACKWARD,
    GAE,
    GAE_BACKWARD,
    TD_LAMBDA,
    TD_LAMBDA_BACKWARD,
    VTRACE,
    VTRACE_BACKWARD,
)
"""Every form without a mask."""

MASKED_FORMS = tuple(masked(form) for form in FORMS if form.flags)
"""The same forms with a mask, except those without flags."""
