"""TorchRL's value functions by this library's: where it gives the same, and with the reason where it does not serve."""

from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled._torch_internals import in_forward_mode
from a2c_compiled.kernels import scan_forms
from a2c_compiled.ops import direct

Served = Union[Any, str]
"""A result, or why there is none."""

_HALF = (torch.float16, torch.bfloat16)


def unfit(
    values: Sequence[Any], flags: Sequence[Any], coefficients: Sequence[Any], time_dim: Any = -2, half: bool = True
) -> Optional[str]:
    """Why this library's function cannot stand in for TorchRL's, if so. Reads no data."""
    if in_forward_mode():
        return "forward-mode differentiation"
    if not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in (*values, *flags)):
        return "not plain tensors"
    like = values[-1]
    if any(tensor.layout is not torch.strided or tensor.device != like.device for tensor in (*values, *flags)):
        return "layouts or devices"
    if any(tensor.shape != like.shape for tensor in (*values, *flags)) or like.numel() == 0:
        return "shapes that differ, or are empty"
    if any(tensor.dtype != like.dtype for tensor in values) or any(flag.dtype != torch.bool for flag in flags):
        return "dtypes that differ, or flags that are not bool"
    if not like.is_floating_point() or (not half and like.dtype in _HALF):
        return "integers, or a precision that TorchRL returns in another"
    if type(time_dim) is not int or not -like.dim() <= time_dim < like.dim():
        return "time_dim"
    if not all(_is_fit(value, like) for value in coefficients):
        return "coefficients of another shape, dtype or device"
    return None


def _is_fit(value: Any, like: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return isinstance(value, (float, int)) and not isinstance(value, bool)
    if type(value) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or value.dtype != like.dtype:
        return False
    return value.shape == like.shape or (value.numel() == 1 and value.dim() <= like.dim())


def _gae(half: bool) -> Callable[..., Served]:
    def serve(
        gamma: Any,
        lmbda: Any,
        state_value: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        *,
        time_dim: Any = -2,
    ) -> Served:
        ends = done if terminated is None else terminated
        found = direct(scan_forms.GAE, time_dim, gamma, lmbda, state_value, next_state_value, reward, done, ends)
        if found is None:
            reason = unfit((state_value, next_state_value, reward), (done, ends), (gamma, lmbda), time_dim, half)
            if reason is not None:
                return reason
            steps = state_value, next_state_value, reward, done, terminated
            found = F.generalized_advantage_estimate(gamma, lmbda, *steps, time_dim)
        # Laid out as `done` is, where TorchRL's can be viewed in any shape.
        return tuple(found) if done.is_contiguous() else (found[0].contiguous(), found[1].contiguous())

    return serve


def _td_lambda_return(half: bool) -> Callable[..., Served]:
    def serve(
        gamma: Any,
        lmbda: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        rolling_gamma: Any = None,
        time_dim: Any = -2,
    ) -> Served:
        if rolling_gamma is not None and not rolling_gamma:
            return "rolling_gamma=False"
        ends = done if terminated is None else terminated
        found = direct(scan_forms.TD_LAMBDA, time_dim, gamma, lmbda, next_state_value, reward, done, ends)
        if found is not None:
            returns = found[0]
        else:
            reason = unfit((next_state_value, reward), (done, ends), (gamma, lmbda), time_dim, half)
            if reason is not None:
                return reason
            returns = F.td_lambda_return_estimate(gamma, lmbda, next_state_value, reward, done, terminated, None, time_dim)
        return returns if done.is_contiguous() else returns.contiguous()

    return serve


def _td1_return(half: bool) -> Callable[..., Served]:
    td_lambda = _td_lambda_return(half)

    def serve(
        gamma: Any,
        next_state_value: Any,
        reward: Any,
        done: Any,
        terminated: Any = None,
        rolling_gamma: Any = None,
        time_dim: Any = -2,
    ) -> Served:
        if half and _is_flag(done) and _is_flag(terminated) and done.shape == terminated.shape:
            done = done | terminated  # TorchRL's loop, unlike its vectorised twin, also cuts at a step that is terminated alone
        return td_lambda(gamma, 1.0, next_state_value, reward, done, terminated, rolling_gamma, time_dim)

    return serve


def _is_flag(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype == torch.bool


def _advantage(returns: Callable[..., Served], num_coefficients: int) -> Callable[..., Served]:
    """The return less the value, which comes after the coefficients."""

    def serve(*arguments: Any, **named: Any) -> Served:
        if "state_value" in named:
            state_value = named.pop("state_value")
        elif len(arguments) > num_coefficients:
            state_value = arguments[num_coefficients]
            arguments = (*arguments[:num_coefficients], *arguments[num_coefficients + 1 :])
        else:
            return "an argument is missing"
        found = returns(*arguments, **named)
        if isinstance(found, str):
            return found
        if type(state_value) is not Tensor or (state_value.shape, state_value.dtype) != (found.shape, found.dtype):
            return "shapes or dtypes that differ"
        return found - state_value

    return serve


def _td0_return(gamma: Any, next_state_value: Any, reward: Any, terminated: Any = None, *, done: Any = None) -> Served:
    if terminated is None:
        return "done in place of terminated"
    reason = unfit((next_state_value, reward), (terminated,), (gamma,), -1)
    return F.td0_return_estimate(gamma, next_state_value, reward, terminated) if reason is None else reason


def _td0_advantage(
    gamma: Any, state_value: Any, next_state_value: Any, reward: Any, done: Any, terminated: Any = None
) -> Served:
    ends = done if terminated is None else terminated
    reason = unfit((state_value, next_state_value, reward), (done, ends), (gamma,), -1)
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
) -> Served:
    steps = log_pi, log_mu, state_value, next_state_value, reward
    ends = done if terminated is None else terminated
    found = direct(scan_forms.VTRACE, time_dim, gamma, rho_thresh, c_thresh, rho_thresh, 1.0, *steps, done, ends)
    if found is None:
        reason = unfit(steps, (done, ends), (gamma, rho_thresh, c_thresh), time_dim)
        if reason is not None:
            return reason
        found = F.vtrace_advantage_estimate(gamma, *steps, done, terminated, rho_thresh, c_thresh, time_dim)
    return tuple(found) if done.is_contiguous() else (found[0].contiguous(), found[1].contiguous())


def _reward2go(reward: Any, done: Any, gamma: Any, *, time_dim: Any = -2) -> Served:
    if isinstance(gamma, Tensor) and gamma.numel() != 1:
        return "a gamma for each step"
    found = direct(scan_forms.REWARD2GO, time_dim, gamma, reward, done)
    if found is not None:
        returns = found[0]
    else:
        reason = unfit((reward,), (done,), (gamma,), time_dim, half=False)
        if reason is not None:
            return reason
        returns = F.reward2go(reward, done, gamma, time_dim)
    return returns if done.is_contiguous() else returns.contiguous()


SERVED: Dict[str, Callable[..., Served]] = {
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
"""By TorchRL's names; each takes TorchRL's arguments. Its vectorised functions return float32 for half precision, its loops do not."""
