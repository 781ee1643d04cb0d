"""Checks and conversions of the estimators' arguments. TorchScript compiles these functions, so they use only what it supports.

The checks read shapes, dtypes and devices only. They never read device memory.
"""

from typing import Dict, Optional, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._kinds import check_real, check_tensor, integer, number_or_tensor
from a2c_compiled._precision import working_dtype
from a2c_compiled._torch_internals import dispatch_is_plain

Coefficient = Union[Tensor, float, int]
"""A discount, trace decay or threshold: a number, a one-element tensor, or a tensor that broadcasts to the data."""


def check_steps(
    reward: Tensor,
    flags: Dict[str, Tensor],
    values: Dict[str, Tensor],
    terminated: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    name: str = "reward",
) -> None:
    """Checks that all have the shape and device of ``reward``, that flags are bool, and that values have the dtype of ``reward``.

    Args:
        reward: any shape, floating; the other tensors are compared with it.
        flags, values: tensors by argument name, which error messages contain.
        terminated, mask: more flags, or None.
        name: what error messages call ``reward``.

    Raises:
        ValueError: a shape or device differs.
        TypeError: an argument is not a tensor, or its dtype is wrong.
    """
    check_tensor(name, reward)
    if not reward.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {reward.dtype}")
    for flag, tensor in flags.items():
        _check_like(flag, tensor, reward, name, torch.bool)
    if terminated is not None:
        _check_like("terminated", terminated, reward, name, torch.bool)
    if mask is not None:
        _check_like("mask", mask, reward, name, torch.bool)
    for value, tensor in values.items():
        _check_like(value, tensor, reward, name, reward.dtype)


def _check_like(name: str, tensor: Tensor, reward: Tensor, reward_name: str, dtype: torch.dtype) -> None:
    check_tensor(name, tensor)
    if tensor.shape != reward.shape:
        raise ValueError(f"{name}: expected the shape of {reward_name}, {list(reward.shape)}, got {list(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if tensor.device != reward.device:
        raise ValueError(f"{name}: expected the device of {reward_name}, {reward.device}, got {tensor.device}")


def time_dimension(tensor: Tensor, time_dim: int, name: str = "time_dim") -> int:
    """Returns ``time_dim`` as a negative index, which stays valid when vmap adds a leading batch dimension.

    Error messages contain ``name``, the caller's argument.

    Raises:
        ValueError: ``tensor`` has no such dimension.
        TypeError: ``time_dim`` is not an integer.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if type(time_dim) is not int:
            time_dim = integer(name, time_dim)
    if time_dim < -tensor.dim() or time_dim >= tensor.dim():
        raise ValueError(
            f"{name}: expected a dimension of a tensor with shape {list(tensor.shape)}, got {time_dim}"
            f" (use {name}=-1 when time is the last dimension)"
        )
    return time_dim - tensor.dim() if time_dim >= 0 else time_dim


def coefficient(name: str, value: Coefficient, like: Tensor) -> Tensor:
    """Returns ``value`` as a tensor that broadcasts to ``like``, on the device of ``like``. Error messages contain ``name``.

    The dtype is float32 if ``like`` is float16 or bfloat16, otherwise the dtype of ``like``. A number or one-element tensor becomes
    zero-dimensional.

    Raises:
        ValueError: ``value`` does not broadcast to ``like``.
        TypeError: ``value`` is neither a number nor a tensor.
    """
    dtype = working_dtype(like)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if not isinstance(value, Tensor):
            value = number_or_tensor(name, value)
    if not isinstance(value, Tensor):
        # torch.full fills on the device. A copy from the host would synchronise.
        return torch.full([], float(value), dtype=dtype, device=like.device)
    check_real(name, value)
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
    """Returns ``value`` as a tensor in a shape that fused scans accept: zero-dimensional, or the shape of ``like``.

    In eager mode a number becomes a CPU tensor, which a kernel launch reads without synchronisation. Under ``torch.compile``, or if
    ``like`` is an instance of a subclass of Tensor, a number becomes a tensor on the device of ``like``. Under TorchScript the result of
    :func:`coefficient` is not expanded.
    """
    if torch.jit.is_scripting():
        return coefficient(name, value, like)
    if not isinstance(value, Tensor):
        value = number_or_tensor(name, value)
    if isinstance(value, float) and type(like) is Tensor and not torch.compiler.is_dynamo_compiling():
        return _number(value, like)
    tensor = coefficient(name, value, like)
    return tensor if tensor.dim() == 0 else tensor.expand_as(like)


def _number(value: float, like: Tensor) -> Tensor:
    """Returns ``value`` as a zero-dimensional CPU tensor. Results are cached, because a lookup is faster than creating a tensor."""
    cached = _NUMBER_CACHE.get((value, like.dtype))
    if cached is not None:
        return cached
    with torch.inference_mode(False):  # autograd cannot save an inference tensor for backward
        number = torch.full([], value, dtype=working_dtype(like), device="cpu")
    # A tensor created under a dispatch mode, transform or trace is valid only in that context, so it is not cached.
    if dispatch_is_plain():
        if len(_NUMBER_CACHE) >= _MAX_CACHED_NUMBERS:
            _NUMBER_CACHE.clear()
        _NUMBER_CACHE[value, like.dtype] = number
    return number


_NUMBER_CACHE: Dict[Tuple[float, torch.dtype], Tensor] = {}
_MAX_CACHED_NUMBERS = 256


def is_per_step(value: Coefficient, like: Tensor, dim: int) -> bool:
    """Returns whether ``value`` is a tensor with as many dimensions as ``like`` and the same size along ``dim``."""
    if not isinstance(value, Tensor):
        return False
    return value.dim() == like.dim() and value.size(dim) == like.size(dim)


def last_step_mask(tensor: Tensor, dim: int) -> Tensor:
    """Returns a bool tensor with the shape of ``tensor`` that is True at the last step along ``dim``.

    The code reads no size, because a compiled backward contains it, see ``_times_next`` in ``ops/linear_scan.py``. It has no slice of T - 1
    steps, because an export would require T - 1 not to be 1.
    """
    step_number = torch.ones_like(tensor, dtype=torch.int32).cumsum(dim, dtype=torch.int32)
    return (step_number == 1).flip([dim])
