"""The kinds of arguments: tensors, numbers, integers and flags. Every public entry point checks them with these functions.

A number is an int, a float, a NumPy scalar or a one-element tensor. A bool is not a number. TorchScript compiles the checks of tensors.
"""

import operator
from numbers import Number, Real
from typing import Any, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor


def described(value: object) -> str:
    """Returns what ``value`` is, for the end of an error message: a number or string itself, otherwise its type, as ``numpy.ndarray``.

    A class is named with its module, as ``the class torch.nn.modules.linear.Linear``.
    """
    if value is None or isinstance(value, (Number, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    if isinstance(value, type):
        return f"the class {_full_name(value)}"
    return _full_name(type(value))


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises TypeError, with the argument's ``name``, unless ``tensor`` is a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {described(tensor)}")


def check_tensors(names: Sequence[str], tensors: Sequence[Any], num_required: int) -> None:
    """Raises TypeError unless all ``tensors`` are tensors, or None after the first ``num_required``. ``names`` are the arguments' names."""
    for i, tensor in enumerate(tensors):
        if tensor is not None or i < num_required:
            check_tensor(names[i], tensor)


def check_observation(name: str, observation: Any) -> None:
    """Raises TypeError unless ``observation`` is a tensor or a tuple of observations."""
    if isinstance(observation, tuple):
        for i, part in enumerate(observation):
            check_observation(f"{name}[{i}]", part)
    elif not isinstance(observation, Tensor):
        remedy = "; make a tuple of the mapping's tensors" if isinstance(observation, Mapping) else ""
        raise TypeError(f"{name}: expected a torch.Tensor or a tuple of them, got {described(observation)}{remedy}")


def check_mask(name: str, mask: Tensor) -> None:
    """Raises TypeError unless ``mask`` is a bool tensor."""
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool, got {mask.dtype}")


def check_optional_mask(mask: Optional[Tensor]) -> None:
    """Raises TypeError unless ``mask`` is a bool tensor or None."""
    if mask is not None:
        check_mask("mask", mask)


def check_real(name: str, tensor: Tensor) -> None:
    """Raises TypeError if ``tensor`` holds no real numbers: if its dtype is bool or complex."""
    if not tensor.is_floating_point() and (tensor.dtype == torch.bool or tensor.is_complex()):
        raise TypeError(f"{name}: expected a number or a tensor of real numbers, got a tensor of {tensor.dtype}")


def number_or_tensor(name: str, value: Any) -> Union[float, Tensor]:
    """Returns a number as a float, and a tensor of real numbers unchanged. Raises TypeError for everything else, also for a bool."""
    if type(value) is float:  # isinstance of Real takes longer
        return value
    if not isinstance(value, Tensor):
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
        # Dynamo traces a NumPy scalar as an array without dimensions.
        if not (torch.compiler.is_dynamo_compiling() and getattr(value, "ndim", None) == 0):
            raise TypeError(f"{name}: expected a number or a tensor, got {described(value)}")
        value = torch.as_tensor(value)
    check_real(name, value)
    return value


def integer(name: str, value: Any) -> int:
    """Converts an integer to a Python int, which TorchScript needs: also a NumPy integer or an integer tensor with one element.

    Raises:
        TypeError: ``value`` is not an integer; a bool is none.
    """
    if not (_is_bool(value) or (isinstance(value, Tensor) and value.dtype == torch.bool)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected an integer, got {described(value)}")


def _is_bool(value: Any) -> bool:
    """Returns whether ``value`` is a bool of Python or NumPy. NumPy 2.1 still takes its bool for an integer, with a warning."""
    if isinstance(value, int):  # also a symbolic integer of Dynamo, which has no text
        return isinstance(value, bool)
    return described(value) in ("numpy.bool", "numpy.bool_")


def flag(name: str, value: Any) -> bool:
    """Converts an option to a Python bool. Raises TypeError unless ``value`` is a bool, of Python or NumPy."""
    if _is_bool(value):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {described(value)}")


def optional_flag(name: str, value: Any) -> Optional[bool]:
    """Converts an option as :func:`flag` does. None stays None."""
    return None if value is None else flag(name, value)
