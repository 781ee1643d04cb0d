"""TorchRL's value functions, computed by this library. For a call that is not supported, the functions return the reason."""

from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled._torch_internals import dispatch_is_plain, in_forward_mode
from a2c_compiled.functional.arguments import coefficient, time_dimension
from a2c_compiled.functional.vtrace import vtrace_with_trace_cut
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct

ResultOrReason = Union[Any, str]
"""The result, or a string: the reason why TorchRL's function must compute the result."""

_HALF = (torch.float16, torch.bfloat16)


def fallback_reason(
    values: Sequence[Any], flags: Sequence[Any], coefficients: Sequence[Any], time_dim: Any = -2, half: bool = True
) -> Optional[str]:
    """Returns the reason why this library cannot compute a call; None if it can. Reads no tensor data.

    Args:
        values: values and rewards, which must have equal shapes and dtypes.
        flags: ``done`` and ``terminated``, which must be bool and have the shape of ``values``.
        coefficients: numbers, or tensors with one element or with the shape of ``values``.
        time_dim: time dimension.
        half: whether this library computes half precision. False if TorchRL's function would return float32 for it.
    """
    if in_forward_mode():
        return "forward-mode differentiation"
    if not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in (*values, *flags)):
        return "arguments that are not plain tensors"
    like = values[-1]
    if any(tensor.layout is not torch.strided or tensor.device != like.device for tensor in (*values, *flags)):
        return "tensors on different devices, or not strided"
    if any(tensor.shape != like.shape for tensor in (*values, *flags)) or like.numel() == 0:
        return "tensors of different shapes, or empty"
    if any(tensor.dtype != like.dtype for tensor in values) or any(flag.dtype != torch.bool for flag in flags):
        return "values of different dtypes, or done and terminated that are not bool"
    if not like.is_floating_point() or (not half and like.dtype in _HALF):
        return "integers, or half precision where TorchRL returns float32"
    if type(time_dim) is not int or not -like.dim() <= time_dim < like.dim():
        return "time_dim that is not an int in range"
    if not all(_is_supported_coefficient(value, like) for value in coefficients):
        return "coefficients of an unsupported type, shape or dtype"
    return None


def _is_supported_coefficient(value: Any, like: Tensor) -> bool:
    """Returns whether ``value`` is a number, or a tensor in the dtype of ``like`` with one element or the shape of ``like``."""
    if not isinstance(value, Tensor):
        return isinstance(value, (float, int)) and not isinstance(value, bool)
    if type(value) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or value.dtype != like.dtype:
        return False
    return value.shape == like.shape or (value.numel() == 1 and value.dim() <= like.dim())


def _gae(half: bool) -> Callable[..., ResultOrReason]:
    """Returns the function for GAE. ``half``: see :func:`fallback_reason`."""

    def compute(
        gamma: Any,
        lmbda: Any,
        state_value: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        *,
        time_dim: Any = -2,
    ) -> ResultOrReason:
        next_state_value, terminated = _with_torchrls_ends(next_state_value, done, terminated)
        ends = done if terminated is None else terminated
        result = direct(scan_forms.GAE, time_dim, gamma, lmbda, state_value, next_state_value, reward, done, ends)
        if result is None:
            reason = fallback_reason((state_value, next_state_value, reward), (done, ends), (gamma, lmbda), time_dim, half)
            if reason is not None:
                return reason
            steps = state_value, next_state_value, reward, done, terminated
            result = F.generalized_advantage_estimate(gamma, lmbda, *steps, time_dim)
        # The results have the memory layout of `done`. Make them contiguous, as TorchRL's are, because callers may use view().
        return tuple(result) if done.is_contiguous() else (result[0].contiguous(), result[1].contiguous())

    return compute


def _td_lambda_return(half: bool) -> Callable[..., ResultOrReason]:
    """Returns the function for the TD(lambda) return. ``half``: see :func:`fallback_reason`."""

    def compute(
        gamma: Any,
        lmbda: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        rolling_gamma: Any = None,
        time_dim: Any = -2,
    ) -> ResultOrReason:
        if rolling_gamma is not None and not rolling_gamma:
            return "rolling_gamma=False"
        next_state_value, terminated = _with_torchrls_ends(next_state_value, done, terminated)
        ends = done if terminated is None else terminated
        result = direct(scan_forms.TD_LAMBDA, time_dim, gamma, lmbda, next_state_value, reward, done, ends)
        if result is not None:
            returns = result[0]
        else:
            reason = fallback_reason((next_state_value, reward), (done, ends), (gamma, lmbda), time_dim, half)
            if reason is not None:
                return reason
            returns = F.td_lambda_return_estimate(gamma, lmbda, next_state_value, reward, done, terminated, None, time_dim)
        return returns if done.is_contiguous() else returns.contiguous()

    return compute


def _td1_return(half: bool) -> Callable[..., ResultOrReason]:
    """Returns the function for the TD(1) return. ``half``: see :func:`fallback_reason`; True stands for TorchRL's loop."""
    td_lambda = _td_lambda_return(half)

    def compute(
        gamma: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        rolling_gamma: Any = None,
        time_dim: Any = -2,
    ) -> ResultOrReason:
        if half and _is_flag(done) and _is_flag(terminated) and done.shape == terminated.shape:
            # TorchRL's loop, unlike its vectorised function, also cuts the return at a step that is terminated but not done.
            done = done | terminated
        return td_lambda(gamma, 1.0, next_state_value, reward, done, terminated, rolling_gamma, time_dim)

    return compute


def _is_flag(tensor: Any) -> bool:
    """Returns whether ``tensor`` is a bool tensor."""
    return isinstance(tensor, Tensor) and tensor.dtype == torch.bool


def _may_continue(done: Any, terminated: Any) -> bool:
    """Returns False if no step is terminated but not done. TorchRL's trace continues after such a step; this library's trace ends.

    The function reads the flags on a CPU only. Elsewhere, and in a trace, it returns True.
    """
    if (
        terminated is None
        or terminated is done
        or not (_is_flag(done) and _is_flag(terminated) and done.shape == terminated.shape)
    ):
        return False
    if torch.compiler.is_compiling() or done.device.type != "cpu" or not dispatch_is_plain():
        return True
    return bool((terminated & ~done).any())


def _with_torchrls_ends(next_state_value: Any, done: Any, terminated: Any) -> Tuple[Any, Any]:
    """Returns ``next_state_value`` and ``terminated`` for which this library's results are TorchRL's.

    At a step that is terminated but not done, the value becomes 0 and the flag False: the step does not bootstrap, and the trace continues.
    """
    if not (_may_continue(done, terminated) and isinstance(next_state_value, Tensor) and next_state_value.shape == done.shape):
        return next_state_value, terminated
    return next_state_value.masked_fill(terminated, 0.0), terminated & done


def _advantage(returns: Callable[..., ResultOrReason], num_coefficients: int) -> Callable[..., ResultOrReason]:
    """Returns a function that computes ``advantage = return - state_value``. ``state_value`` is its argument after the coefficients."""

    def compute(*arguments: Any, **named: Any) -> ResultOrReason:
        if "state_value" in named:
            state_value = named.pop("state_value")
        elif len(arguments) > num_coefficients:
            state_value = arguments[num_coefficients]
            arguments = (*arguments[:num_coefficients], *arguments[num_coefficients + 1 :])
        else:
            return "state_value is missing"
        result = returns(*arguments, **named)
        if isinstance(result, str):
            return result
        if type(state_value) is not Tensor or (state_value.shape, state_value.dtype) != (result.shape, result.dtype):
            return "state_value of another shape or dtype than the return"
        return result - state_value

    return compute


def _td0_return(gamma: Any, next_state_value: Any, reward: Any, terminated: Any = None, *, done: Any = None) -> ResultOrReason:
    if terminated is None:
        return "terminated is missing"
    reason = fallback_reason((next_state_value, reward), (terminated,), (gamma,), -1)  # TD(0) does not use time_dim
    return F.td0_return_estimate(gamma, next_state_value, reward, terminated) if reason is None else reason


def _td0_advantage(
    gamma: Any, state_value: Any, next_state_value: Any, reward: Any, done: Any, terminated: Any = None
) -> ResultOrReason:
    ends = done if terminated is None else terminated
    reason = fallback_reason((state_value, next_state_value, reward), (done, ends), (gamma,), -1)
    return F.td0_return_estimate(gamma, next_state_value, reward, ends) - state_value if reason is None else reason


def _vtrace(
    gamma: Any,
    log_pi: Any,
    log_mu: Any,
    state_value: Any,
    next_state_value: Any,
    reward: Any,
    done: Any,
    terminated: Any = None,
    rho_thresh: Any = 1.0,
    c_thresh: Any = 1.0,
    time_dim: Any = -2,
) -> ResultOrReason:
    steps = log_pi, log_mu, state_value, next_state_value, reward
    ends = done if terminated is None else terminated
    may_continue = _may_continue(done, terminated)
    thresholds = gamma, rho_thresh, c_thresh, rho_thresh
    result = None if may_continue else direct(scan_forms.VTRACE, time_dim, *thresholds, 1.0, *steps, done, ends)
    if result is None:
        reason = fallback_reason(steps, (done, ends), (gamma, rho_thresh, c_thresh), time_dim)
        if reason is not None:
            return reason
        if may_continue:
            # The fused kernel ends the trace at terminated steps too.
            coefficients = [coefficient("threshold", value, reward) for value in (*thresholds, 1.0)]
            inputs: Any = (*coefficients, *steps, done, ends, time_dimension(reward, time_dim))
            result = vtrace_with_trace_cut(*inputs)
        else:
            result = F.vtrace_advantage_estimate(gamma, *steps, done, terminated, rho_thresh, c_thresh, time_dim)
    return tuple(result) if done.is_contiguous() else (result[0].contiguous(), result[1].contiguous())


def _reward2go(reward: Any, done: Any, gamma: Any, *, time_dim: Any = -2) -> ResultOrReason:
    if isinstance(gamma, Tensor) and gamma.numel() != 1:
        return "gamma with several elements"
    result = direct(scan_forms.REWARD2GO, time_dim, gamma, reward, done)
    if result is not None:
        returns = result[0]
    else:
        reason = fallback_reason((reward,), (done,), (gamma,), time_dim, half=False)
        if reason is not None:
            return reason
        returns = F.reward2go(reward, done, gamma, time_dim)
    return returns if done.is_contiguous() else returns.contiguous()


SERVED: Dict[str, Callable[..., ResultOrReason]] = {
    "generalized_advantage_estimate": _gae(half=True),
    "vec_generalized_advantage_estimate": _gae(half=False),
    "td0_return_estimate": _td0_return,
    "td0_advantage_estimate": _td0_advantage,
    "td1_return_estimate": _td1_return(half=True),
    "vec_td1_return_estimate": _td1_return(half=False),
    "td1_advantage_estimate": _advantage(_td1_return(half=True), 1),
    "vec_td1_advantage_estimate": _advantage(_td1_return(half=False), 1),
    "td_lambda_return_estimate": _td_lambda_return(half=True),
    "vec_td_lambda_return_estimate": _td_lambda_return(half=False),
    "td_lambda_advantage_estimate": _advantage(_td_lambda_return(half=True), 2),
    "vec_td_lambda_advantage_estimate": _advantage(_td_lambda_return(half=False), 2),
    "vtrace_advantage_estimate": _vtrace,
    "reward2go": _reward2go,
}
"""This library's functions with TorchRL's arguments, by the name of TorchRL's function.

In half precision, TorchRL's vectorised functions and ``reward2go`` return float32; TorchRL's loops return half precision.
"""
