"""The forms on the device: of each, the decay, what is added at a step, and what becomes of the scan. Everything else is shared.

Operands come as in :mod:`a2c_compiled.kernels.scan_forms`: tuples of coefficients, values and flags, those of the step itself first,
then those of the step before and of the step after (zeros where there is none). What a form does not use is not loaded.
Flags select, they never multiply: NaN beyond them does not leak.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from a2c_compiled._precision import LARGEST_LOG_RATIO
from a2c_compiled.kernels import scan_forms

_LARGEST_LOG_RATIO = tl.constexpr(LARGEST_LOG_RATIO)


class DeviceForm(NamedTuple):
    """``y[t] = source[t] + decay[t] * y[t+1]``, or for a transposed form ``y[t] = source[t] + decay[t-1] * y[t-1]``."""

    decay: Any  # (coefficients, values, flags) of one step
    source: Any  # (here, before, after, last)
    outputs: Any  # (here, before, after, last, y, y[t+1]), in the order of the form's outputs
    # Whether the outputs need y[t+1], which costs a wider scan.
    needs_next: bool = False


@triton.jit
def _first_value(here, before, after, last):
    return here[1][0]


@triton.jit
def _only_scan(here, before, after, last, y, y_next):
    return (y,)


@triton.jit
def _linear_scan_decay(coefficients, values, flags):
    return values[1]


@triton.jit
def _reward2go_decay(coefficients, values, flags):
    return tl.where(flags[0], 0.0, coefficients[0])


@triton.jit
def _trace_decay(coefficients, values, flags):
    return tl.where(flags[0], 0.0, coefficients[0] * coefficients[1])


@triton.jit
def _gae_source(here, before, after, last):
    value, next_value, reward = here[1]
    return reward + here[0][0] * tl.where(here[2][1], 0.0, next_value) - value


@triton.jit
def _gae_outputs(here, before, after, last, y, y_next):
    return y, y + here[1][0]


@triton.jit
def _gae_backward_source(here, before, after, last):
    return here[1][0] + here[1][1]


@triton.jit
def _gae_backward_outputs(here, before, after, last, y, y_next):
    return here[1][1] - y, tl.where(here[2][1], 0.0, here[0][0] * y), y


@triton.jit
def _td_lambda_open(here, last):
    """1 - trace."""
    return tl.where(here[2][0] | last, 1.0, 1.0 - here[0][1])


@triton.jit
def _td_lambda_source(here, before, after, last):
    next_value, reward = here[1]
    return reward + here[0][0] * tl.where(here[2][1], 0.0, next_value) * _td_lambda_open(here, last)


@triton.jit
def _td_lambda_backward_outputs(here, before, after, last, y, y_next):
    return tl.where(here[2][1], 0.0, here[0][0] * _td_lambda_open(here, last) * y), y


@triton.jit
def _at_most(x, bound):
    """Unlike tl.minimum, NaN stays NaN."""
    return tl.where(x > bound, bound, x)


@triton.jit
def _ratio(log_pi, log_mu):
    return tl.exp(_at_most(log_pi - log_mu, _LARGEST_LOG_RATIO))


@triton.jit
def _vtrace_decay(coefficients, values, flags):
    decay = coefficients[0] * coefficients[4] * _at_most(_ratio(values[0], values[1]), coefficients[2])
    return tl.where(flags[0], 0.0, decay)


@triton.jit
def _vtrace_source(here, before, after, last):
    gamma, rho_thresh, _, _, _ = here[0]
    log_pi, log_mu, value, next_value, reward = here[1]
    delta = reward + gamma * tl.where(here[2][1], 0.0, next_value) - value
    return _at_most(_ratio(log_pi, log_mu), rho_thresh) * delta


@triton.jit
def _vtrace_outputs(here, before, after, last, y, y_next):
    gamma, _, _, pg_rho_thresh, lmbda = here[0]
    log_pi, log_mu, value, next_value, reward = here[1]
    done, terminated = here[2]
    next_target = tl.where(done | last, next_value, after[1][2] + lmbda * y_next)
    advantage = reward + gamma * tl.where(terminated, 0.0, next_target) - value
    return _at_most(_ratio(log_pi, log_mu), pg_rho_thresh) * advantage, value + y


@triton.jit
def _vtrace_backward_decay(coefficients, values, flags):
    decay = coefficients[0] * coefficients[4] * _at_most(_ratio(values[2], values[3]), coefficients[2])
    return tl.where(flags[0], 0.0, decay)


@triton.jit
def _to_next_value(step):
    """What the gradient of a step's advantage sends to the value after it and, times lambda, to its correction; not of a last step."""
    gamma, _, _, pg_rho_thresh, _ = step[0]
    weight = step[1][0] * gamma * _at_most(_ratio(step[1][2], step[1][3]), pg_rho_thresh)
    return tl.where(step[2][0] | step[2][1], 0.0, weight)


@triton.jit
def _vtrace_backward_source(here, before, after, last):
    return here[1][1] + before[0][4] * _to_next_value(before)


@triton.jit
def _vtrace_backward_outputs(here, before, after, last, y, y_next):
    gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda = here[0]
    grad_advantage, grad_target, log_pi, log_mu, value, next_value, reward, _ = here[1]
    done, terminated = here[2]
    cut = done | last
    later_value = after[1][4]
    correction = after[1][7] - later_value
    ratio = _ratio(log_pi, log_mu)

    delta = reward + gamma * tl.where(terminated, 0.0, next_value) - value
    next_target = tl.where(terminated, 0.0, tl.where(cut, next_value, later_value + lmbda * correction))
    grad_rho = y * delta
    grad_pg_rho = grad_advantage * (reward + gamma * next_target - value)
    grad_c = tl.where(cut, 0.0, y * gamma * lmbda * correction)
    # At the threshold itself the gradient is the ratio's, as clamp_max has it.
    grad_ratio = tl.where(ratio <= rho_thresh, grad_rho, 0.0) + tl.where(ratio <= pg_rho_thresh, grad_pg_rho, 0.0)
    grad_ratio += tl.where(ratio <= c_thresh, grad_c, 0.0)
    grad_log_pi = tl.where(log_pi - log_mu <= _LARGEST_LOG_RATIO, grad_ratio * ratio, 0.0)

    grad_correction = _at_most(ratio, rho_thresh) * y
    grad_own = _at_most(ratio, pg_rho_thresh) * grad_advantage
    grad_reward = grad_correction + grad_own
    grad_next = tl.where(terminated, 0.0, gamma * (grad_correction + tl.where(cut, grad_own, 0.0)))
    # The target's gradient is also the value's, but for what the differences take off.
    grad_value = grad_target + _to_next_value(before) - grad_reward
    return grad_log_pi, -grad_log_pi, grad_value, grad_next, grad_reward


DEVICE_FORMS = {
    scan_forms.LINEAR_SCAN.name: DeviceForm(_linear_scan_decay, _first_value, _only_scan),
    scan_forms.LINEAR_SCAN_TRANSPOSED.name: DeviceForm(_linear_scan_decay, _first_value, _only_scan),
    scan_forms.REWARD2GO.name: DeviceForm(_reward2go_decay, _first_value, _only_scan),
    scan_forms.REWARD2GO_BACKWARD.name: DeviceForm(_reward2go_decay, _first_value, _only_scan),
    scan_forms.GAE.name: DeviceForm(_trace_decay, _gae_source, _gae_outputs),
    scan_forms.GAE_BACKWARD.name: DeviceForm(_trace_decay, _gae_backward_source, _gae_backward_outputs),
    scan_forms.TD_LAMBDA.name: DeviceForm(_trace_decay, _td_lambda_source, _only_scan),
    scan_forms.TD_LAMBDA_BACKWARD.name: DeviceForm(_trace_decay, _first_value, _td_lambda_backward_outputs),
    scan_forms.VTRACE.name: DeviceForm(_vtrace_decay, _vtrace_source, _vtrace_outputs, needs_next=True),
    scan_forms.VTRACE_BACKWARD.name: DeviceForm(_vtrace_backward_decay, _vtrace_backward_source, _vtrace_backward_outputs),
}
