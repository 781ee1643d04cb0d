"""The forms (recurrences with their inputs and outputs) as device functions for :mod:`a2c_compiled.kernels.triton.kernel`: the decay,
``x`` and the outputs of one step.

:mod:`a2c_compiled.kernels.scan_forms` defines the notation. The arguments of the device functions are:

* ``here``, ``before``, ``after``: the operands at the steps ``t``, ``t-1`` and ``t+1``. Each is a tuple (coefficients, values, flags) of
  tuples in the order of the form: ``here[0][0]`` is the first coefficient, ``here[1][0]`` the first value, ``here[2][0]`` the first
  flag. At the first step, the values, flags and per-step coefficients of ``before`` are 0. At the last step, ``after`` is any step.
* ``last``: bool, ``t == T-1``.
* ``y``: the result of the scan at ``t``. ``y_next``: its result at ``t+1``, valid only if the form sets ``needs_next``.

The compiler removes loads that a form does not use. Flags select by ``tl.where``; a product with a flag would let NaN through.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from a2c_compiled._precision import LARGEST_LOG_RATIO
from a2c_compiled.kernels import scan_forms

_LARGEST_LOG_RATIO = tl.constexpr(LARGEST_LOG_RATIO)


class DeviceForm(NamedTuple):
    """The device functions of a form.

    A reverse form computes ``y[t] = x[t] + decay[t] * y[t+1]``. A transposed form computes ``y[t] = x[t] + decay[t-1] * y[t-1]``.
    """

    decay: Any  # (coefficients, values, flags) of one step -> decay[t]
    source: Any  # (here, before, after, last) -> x[t]
    outputs: Any  # (here, before, after, last, y, y_next) -> a tuple in the order of the form's outputs
    # Whether `outputs` reads y_next. If so, and if several threads share the steps of a chunk, the kernel scans four tensors, not two.
    needs_next: bool = False


# x[t] is the first value of the form.
@triton.jit
def _first_value(here, before, after, last):
    return here[1][0]


# The only output is y[t].
@triton.jit
def _only_scan(here, before, after, last, y, y_next):
    return (y,)


# linear_scan: y[t] = x[t] + decay[t] * y[t+1]. Transposed: y[t] = x[t] + decay[t-1] * y[t-1].
@triton.jit
def _linear_scan_decay(coefficients, values, flags):
    return values[1]


# reward2go: returns[t] = reward[t] + decay[t] * returns[t+1]
#     decay[t] = 0 if done[t] else gamma[t]
# reward2go_backward: grad_reward[t] = grad_returns[t] + decay[t-1] * grad_reward[t-1]
@triton.jit
def _reward2go_decay(coefficients, values, flags):
    return tl.where(flags[0], 0.0, coefficients[0])


# eligibility_trace: trace[t] = x[t] + decay[t-1] * trace[t-1]
#     decay[t] = 0 if done[t] else gamma[t] * lmbda[t]
# eligibility_trace_backward: grad_x[t] = grad_trace[t] + decay[t] * grad_x[t+1]
@triton.jit
def _eligibility_decay(coefficients, values, flags):
    return tl.where(flags[0], 0.0, coefficients[0] * coefficients[1])


# ends[t] = done[t] or terminated[t]
@triton.jit
def _ends(flags):
    return flags[0] | flags[1]


# The decay of gae and td_lambda, and of their gradients: decay[t] = 0 if ends[t] else gamma[t] * lmbda[t]. Two selections need fewer
# registers than one selection with both flags.
# td_lambda has decay[T-1] = 0 too. The kernel ignores decay[T-1], so no term is needed for it here.
@triton.jit
def _trace_decay(coefficients, values, flags):
    return tl.where(flags[0], 0.0, tl.where(flags[1], 0.0, coefficients[0] * coefficients[1]))


# gae: advantage[t] = delta[t] + decay[t] * advantage[t+1]
#     delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
#     value_target[t] = advantage[t] + state_value[t]
@triton.jit
def _gae_source(here, before, after, last):
    value, next_value, reward = here[1]
    return tl.where(here[2][1], reward, reward + here[0][0] * next_value) - value


@triton.jit
def _gae_outputs(here, before, after, last, y, y_next):
    return y, y + here[1][0]


# gae_backward: g[t] = grad_advantage[t] + grad_value_target[t] + decay[t-1] * g[t-1]
#     g is the gradient of delta. Both outputs contain advantage[t], so both of their gradients enter x[t].
#     grad_state_value[t] = grad_value_target[t] - g[t]: value_target contains +state_value, delta contains -state_value.
#     grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * g[t]
#     grad_reward[t] = g[t]
@triton.jit
def _gae_backward_source(here, before, after, last):
    return here[1][0] + here[1][1]


@triton.jit
def _gae_backward_outputs(here, before, after, last, y, y_next):
    return here[1][1] - y, tl.where(here[2][1], 0.0, here[0][0] * y), y


# td_lambda: returns[t] = x[t] + decay[t] * returns[t+1]
#     trace[t] = 0 if ends[t] or t == T-1 else lmbda[t]
#     x[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) * (1 - trace[t])
#     decay[t] = gamma[t] * trace[t]
# 1 - trace[t], without the flag terminated: at a terminated step, both uses select 0 instead of the product.
@triton.jit
def _one_minus_trace(here, last):
    return tl.where(here[2][0] | last, 1.0, 1.0 - here[0][1])


@triton.jit
def _td_lambda_source(here, before, after, last):
    next_value, reward = here[1]
    return tl.where(here[2][1], reward, reward + here[0][0] * (next_value * _one_minus_trace(here, last)))


# td_lambda_backward: g[t] = grad_returns[t] + decay[t-1] * g[t-1], the gradient of x.
#     grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (1 - trace[t]) * g[t]
#     grad_reward[t] = g[t]
@triton.jit
def _td_lambda_backward_outputs(here, before, after, last, y, y_next):
    return tl.where(here[2][1], 0.0, here[0][0] * _one_minus_trace(here, last) * y), y


@triton.jit
def _at_most(x, bound):
    """Computes min(x, bound), but NaN if one of them is NaN, as torch.minimum does."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


# ratio[t] = exp(min(log_pi[t] - log_mu[t], LARGEST_LOG_RATIO)): the bound keeps the ratio finite in float32.
@triton.jit
def _ratio(log_pi, log_mu):
    return tl.exp(_at_most(log_pi - log_mu, _LARGEST_LOG_RATIO))


# vtrace: y[t] = rho[t] * delta[t] + decay[t] * y[t+1], the correction of the value.
#     rho[t], c[t], pg_rho[t] = ratio[t], each clipped to at most rho_thresh[t], c_thresh[t], pg_rho_thresh[t]
#     delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
#     decay[t] = 0 if ends[t] else gamma[t] * lmbda[t] * c[t]
#     value_target[t] = state_value[t] + y[t]
#     next_target[t] = next_state_value[t] if ends[t] or t == T-1 else state_value[t+1] + lmbda[t] * y[t+1]
#     advantage[t] = pg_rho[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
@triton.jit
def _vtrace_decay(coefficients, values, flags):
    decay = coefficients[0] * coefficients[4] * _at_most(_ratio(values[0], values[1]), coefficients[2])
    return tl.where(_ends(flags), 0.0, decay)


@triton.jit
def _vtrace_source(here, before, after, last):
    gamma, rho_thresh, _, _, _ = here[0]
    log_pi, log_mu, value, next_value, reward = here[1]
    delta = tl.where(here[2][1], reward, reward + gamma * next_value) - value
    return _at_most(_ratio(log_pi, log_mu), rho_thresh) * delta


@triton.jit
def _vtrace_outputs(here, before, after, last, y, y_next):
    gamma, _, _, pg_rho_thresh, lmbda = here[0]
    log_pi, log_mu, value, next_value, reward = here[1]
    next_target = tl.where(here[2][0] | last, next_value, after[1][2] + lmbda * y_next)
    advantage = tl.where(here[2][1], reward, reward + gamma * next_target) - value
    return _at_most(_ratio(log_pi, log_mu), pg_rho_thresh) * advantage, value + y


# vtrace_backward: g[t] = grad_value_target[t] + lmbda[t-1] * sent[t] + decay[t-1] * g[t-1], the gradient of rho * delta.
#     sent[t] = 0 if t == 0 or ends[t-1] else grad_advantage[t-1] * gamma[t-1] * pg_rho[t-1]
#     advantage[t-1] sends this gradient to next_target[t-1] = state_value[t] + lmbda[t-1] * y[t].
@triton.jit
def _vtrace_backward_decay(coefficients, values, flags):
    decay = coefficients[0] * coefficients[4] * _at_most(_ratio(values[2], values[3]), coefficients[2])
    return tl.where(_ends(flags), 0.0, decay)


@triton.jit
def _sent_by(step):
    """Computes sent[t] from ``step``, the operands at t-1. The result is 0 at t = 0, because the kernel loads grad_advantage as 0 there."""
    gamma, _, _, pg_rho_thresh, _ = step[0]
    weight = step[1][0] * gamma * _at_most(_ratio(step[1][2], step[1][3]), pg_rho_thresh)
    return tl.where(_ends(step[2]), 0.0, weight)


@triton.jit
def _vtrace_backward_source(here, before, after, last):
    return here[1][1] + tl.where(_ends(before[2]), 0.0, before[0][4] * _sent_by(before))


# The outputs of vtrace_backward, with cut[t] = ends[t] or t == T-1 and y[t+1] = value_target[t+1] - state_value[t+1]:
#     grad_rho[t] = g[t] * delta[t]
#     grad_pg_rho[t] = grad_advantage[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
#     grad_c[t] = 0 if cut[t] else g[t] * gamma[t] * lmbda[t] * y[t+1]
#     grad_ratio[t] = grad_rho[t] + grad_pg_rho[t] + grad_c[t], each only where ratio[t] does not exceed its threshold
#     grad_log_pi[t] = grad_ratio[t] * ratio[t], 0 where log_pi[t] - log_mu[t] exceeds LARGEST_LOG_RATIO
#     grad_log_mu[t] = -grad_log_pi[t]
#     grad_reward[t] = rho[t] * g[t] + pg_rho[t] * grad_advantage[t]
#     grad_state_value[t] = grad_value_target[t] + sent[t] - grad_reward[t]
#     grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (rho[t] * g[t] + (pg_rho[t] * grad_advantage[t] if cut[t] else 0))
# In this function y is g, and `correction` is y[t+1].
@triton.jit
def _vtrace_backward_outputs(here, before, after, last, y, y_next):
    gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda = here[0]
    grad_advantage, grad_target, log_pi, log_mu, value, next_value, reward, _ = here[1]
    terminated = here[2][1]
    cut = _ends(here[2]) | last
    later_value = after[1][4]
    correction = after[1][7] - later_value
    ratio = _ratio(log_pi, log_mu)

    delta = tl.where(terminated, reward, reward + gamma * next_value) - value
    next_target = tl.where(cut, next_value, later_value + lmbda * correction)
    grad_rho = y * delta
    grad_pg_rho = grad_advantage * (tl.where(terminated, reward, reward + gamma * next_target) - value)
    grad_c = tl.where(cut, 0.0, y * gamma * lmbda * correction)
    # The gradient passes a ratio that equals its threshold, as in torch.clamp_max.
    grad_ratio = tl.where(ratio <= rho_thresh, grad_rho, 0.0) + tl.where(ratio <= pg_rho_thresh, grad_pg_rho, 0.0)
    grad_ratio += tl.where(ratio <= c_thresh, grad_c, 0.0)
    grad_log_pi = tl.where(log_pi - log_mu <= _LARGEST_LOG_RATIO, grad_ratio * ratio, 0.0)

    grad_correction = _at_most(ratio, rho_thresh) * y
    grad_own = _at_most(ratio, pg_rho_thresh) * grad_advantage
    grad_reward = grad_correction + grad_own
    grad_next = tl.where(terminated, 0.0, gamma * (grad_correction + tl.where(cut, grad_own, 0.0)))
    # value_target[t] and next_target[t-1] contain +state_value[t]. delta[t] and the difference in advantage[t] contain -state_value[t]; the
    # gradient of both together is grad_reward.
    grad_value = grad_target + _sent_by(before) - grad_reward
    return grad_log_pi, -grad_log_pi, grad_value, grad_next, grad_reward


DEVICE_FORMS = {
    scan_forms.LINEAR_SCAN.name: DeviceForm(_linear_scan_decay, _first_value, _only_scan),
    scan_forms.LINEAR_SCAN_TRANSPOSED.name: DeviceForm(_linear_scan_decay, _first_value, _only_scan),
    scan_forms.REWARD2GO.name: DeviceForm(_reward2go_decay, _first_value, _only_scan),
    scan_forms.REWARD2GO_BACKWARD.name: DeviceForm(_reward2go_decay, _first_value, _only_scan),
    scan_forms.ELIGIBILITY_TRACE.name: DeviceForm(_eligibility_decay, _first_value, _only_scan),
    scan_forms.ELIGIBILITY_TRACE_BACKWARD.name: DeviceForm(_eligibility_decay, _first_value, _only_scan),
    scan_forms.GAE.name: DeviceForm(_trace_decay, _gae_source, _gae_outputs),
    scan_forms.GAE_BACKWARD.name: DeviceForm(_trace_decay, _gae_backward_source, _gae_backward_outputs),
    scan_forms.TD_LAMBDA.name: DeviceForm(_trace_decay, _td_lambda_source, _only_scan),
    scan_forms.TD_LAMBDA_BACKWARD.name: DeviceForm(_trace_decay, _first_value, _td_lambda_backward_outputs),
    scan_forms.VTRACE.name: DeviceForm(_vtrace_decay, _vtrace_source, _vtrace_outputs, needs_next=True),
    scan_forms.VTRACE_BACKWARD.name: DeviceForm(_vtrace_backward_decay, _vtrace_backward_source, _vtrace_backward_outputs),
}
