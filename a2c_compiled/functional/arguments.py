"""What every estimator asks of its arguments, checked before anything is computed. All of it is TorchScript.

Nothing here reads device memory: shapes, dtypes and devices only.
"""

from typing import Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._precision import working_dtype
from a2c_compiled._torch_internals import nothing_watches
from a2c_compiled.functional.packed import sequence_ends

Coefficient = Union[Tensor, float, int]
"""A discount, trace decay or threshold: a number, a one-element tensor, or a tensor that broadcasts to the data."""


def check_steps(
    reward: Tensor, flags: Dict[str, Tensor], values: Dict[str, Tensor], terminated: Optional[Tensor] = None
) -> None:
    """Flags and values agree with ``reward`` in shape and device; flags are bool, values of its dtype.

    By name, so that a message can say which is meant.
    """
    if not isinstance(reward, Tensor):
        raise TypeError(f"reward: expected a tensor, got {type(reward)}")
    if not reward.is_floating_point():
        raise TypeError(f"reward: expected a floating dtype, got {reward.dtype}")
    shape, device = reward.shape, reward.device
    for name, tensor in flags.items():
        _check_like_reward(name, tensor, shape, torch.bool, device)  # type: ignore[arg-type]
    if terminated is not None:
        _check_like_reward("terminated", terminated, shape, torch.bool, device)  # type: ignore[arg-type]
    for name, tensor in values.items():
        _check_like_reward(name, tensor, shape, reward.dtype, device)  # type: ignore[arg-type]


def checked_steps(
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor],
    values: Dict[str, Tensor],
    time_dim: int,
    cu_seqlens: Optional[Tensor],
) -> Tuple[Tensor, Tensor, int]:
    """After the checks of all these: where the trace is cut, where the bootstrap is, and :func:`time_dimension`.

    The end of a sequence is a truncation: it cuts the trace alone.
    """
    check_steps(reward, {"done": done}, values, terminated)
    dim = time_dimension(reward, time_dim)
    no_bootstrap = done if terminated is None else terminated
    if cu_seqlens is not None:
        done = done | sequence_ends(cu_seqlens, done, dim)
    return done, no_bootstrap, dim


def _check_like_reward(name: str, tensor: Tensor, shape: List[int], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor)}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected the shape of reward, {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected the device of reward, {device}, got {tensor.device}")


def time_dimension(tensor: Tensor, time_dim: int) -> int:
    """``time_dim`` counted from the end: the form that an added batch dimension leaves alone."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if not isinstance(time_dim, int):
            raise TypeError(f"time_dim: expected an integer, got {type(time_dim)}")
    if time_dim < -tensor.dim() or time_dim >= tensor.dim():
        raise ValueError(
            f"time_dim: expected a dimension of data of shape {list(tensor.shape)}, got {time_dim}"
            " (say time_dim=-1 where time comes last)"
        )
    return time_dim - tensor.dim() if time_dim >= 0 else time_dim


def coefficient(name: str, value: Coefficient, like: Tensor) -> Tensor:
    """``value`` as a tensor that broadcasts to ``like``, on its device, in the dtype that is computed in."""
    dtype = working_dtype(like)
    if not isinstance(value, Tensor):
        if not torch.jit.is_scripting():  # noqa: SIM102
            if not isinstance(value, (int, float)):
                raise TypeError(f"{name}: expected a number or a tensor, got {type(value)}")
        # A fill, not a copy from the host: nothing waits for the device.
        return torch.full([], float(value), dtype=dtype, device=like.device)
    if value.numel() == 1:
        return value.reshape([]).to(device=like.device, dtype=dtype)
    broadcasts = value.dim() <= like.dim()
    for i in range(1, min(value.dim(), like.dim()) + 1):
        broadcasts = broadcasts and (value.size(-i) == 1 or value.size(-i) == like.size(-i))
    if not broadcasts:
        raise ValueError(
            f"{name}: expected a number or a tensor that broadcasts to {list(like.shape)}, got shape {list(value.shape)}"
        )
    return value.to(device=like.device, dtype=dtype)


def operand(name: str, value: Coefficient, like: Tensor) -> Tensor:
    """:func:`coefficient` as the fused scans take it: zero-dimensional or of the shape of ``like``.

    A number stays in host memory, where a launch reads it without waiting for the device. In TorchScript it is :func:`coefficient`.
    """
    if torch.jit.is_scripting():
        return coefficient(name, value, like)
    if isinstance(value, (float, int)) and type(like) is Tensor and not torch.compiler.is_dynamo_compiling():
        return _number(float(value), like)
    tensor = coefficient(name, value, like)
    return tensor if tensor.dim() == 0 else tensor.expand_as(like)


def _number(value: float, like: Tensor) -> Tensor:
    """A zero-dimensional tensor in host memory: made once, since to make it takes longer than to look it up."""
    known = _NUMBERS.get((value, like.dtype))
    if known is not None:
        return known
    with torch.inference_mode(False):  # or autograd could not save it later
        number = torch.full([], value, dtype=working_dtype(like), device="cpu")
    if nothing_watches():  # else it is a mode's, a transform's or a trace's, and not to outlive them
        if len(_NUMBERS) >= _MOST_NUMBERS:
            _NUMBERS.clear()
        _NUMBERS[value, like.dtype] = number
    return number


_NUMBERS: Dict[Tuple[float, torch.dtype], Tensor] = {}
_MOST_NUMBERS = 256


def is_per_step(value: Coefficient, like: Tensor, dim: int) -> bool:
    """Whether ``value`` has an entry of its own for each step of ``like`` along ``dim``."""
    if not isinstance(value, Tensor):
        return False
    return value.dim() == like.dim() and value.size(dim) == like.size(dim)


def last_step(tensor: Tensor, dim: int) -> Tensor:
    """Bool, true at the last step along ``dim``, broadcastable to ``tensor``."""
    length = tensor.size(dim)
    shape: List[int] = [1] * tensor.dim()
    shape[dim] = length
    return (torch.arange(length, device=tensor.device) == length - 1).reshape(shape)
