"""Hyperparameters as buffers of a module: they are saved and moved with the module, and can be changed during training."""

import operator
from numbers import Real
from typing import Any, Callable, Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn


class Range(NamedTuple):
    """The allowed range of a coefficient.

    Attributes:
        expected: description of the range for error messages.
        low: lower bound of the range.
        high: upper bound of the range, which is allowed.
        open_below: whether ``low`` itself is not allowed.
    """

    expected: str
    low: float = -float("inf")
    high: float = float("inf")
    open_below: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises ValueError, with the argument's ``name``, unless ``value`` is in the range."""
        if not self.low <= value <= self.high or (self.open_below and value == self.low):
            raise ValueError(f"{name}: expected {self.expected}, got {value}")


ANY = Range("a number")
UNIT = Range("a number from 0 to 1", 0.0, 1.0)
NOT_NEGATIVE = Range("a number of at least 0", 0.0)
POSITIVE = Range("a positive number", 0.0, open_below=True)


class CoefficientModule(nn.Module):
    """A module whose own buffers keep their dtype: hyperparameters (coefficients), and statistics or counters of subclasses.

    :meth:`register_coefficient` stores a number as a 0-d float64 tensor. The tensor stays in float64 when the module changes dtype, because
    0.99 in bfloat16 is 0.988. Assigning a number or a one-element tensor to the attribute, as in ``module.gamma = 0.9``, writes into that
    tensor. A compiled graph reads the new value without recompiling, and an optimizer over the module stays valid.
    """

    _ranges: Dict[str, Range]  # allowed ranges by coefficient name; the attribute exists after the first registration

    def register_coefficient(
        self,
        name: str,
        value: Optional[Union[float, Tensor]],
        allowed: Range = ANY,
        optional: bool = False,
        scalar: bool = False,
    ) -> None:
        """Registers ``value`` as the buffer ``name``.

        Args:
            name: name of the attribute.
            value: a number or a tensor, or None (the option is not set) with ``optional``. A tensor is copied unless it requires grad.
                An integer tensor becomes float64.
            allowed: range of the number, also for later assignments. Tensors are not checked, because a check would synchronise with the
                device.
            optional: whether None is allowed.
            scalar: whether a tensor must have one element. Such a tensor is reshaped to 0-d.

        Raises:
            TypeError: ``value`` is not a number, a tensor or an allowed None.
            ValueError: the number is out of range, or ``scalar`` and the tensor does not have one element.
        """
        is_bool = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
        if is_bool or (not isinstance(value, (Real, Tensor)) and not (optional and value is None)):
            raise TypeError(f"{name}: expected a number or a tensor, got {value!r}")
        ranges: Dict[str, Range] = self.__dict__.setdefault("_ranges", {})
        ranges[name] = allowed
        if isinstance(value, Real):
            value = self._checked_number(name, float(value))
        elif isinstance(value, Tensor):
            if scalar and value.numel() != 1:
                raise ValueError(f"{name}: expected a number or a one-element tensor, got shape {list(value.shape)}")
            if scalar:
                value = value.reshape([])
            if not value.is_floating_point():
                value = value.double()  # a fraction assigned later would be rounded to an integer
            if not value.requires_grad:
                value = value.clone()  # later assignments must not write into the caller's tensor
        self.register_buffer(name, value)

    def _checked_number(self, name: str, value: float) -> Tensor:
        """Checks the range of the coefficient ``name`` and returns ``value`` as a 0-d float64 tensor."""
        self._ranges[name].check(name, value)
        return torch.tensor(value, dtype=torch.float64, device=self._coefficients_device())

    def _coefficients_device(self) -> Optional[torch.device]:
        """Returns the device of the registered coefficients, or None if no coefficient is registered yet."""
        return next((buffer.device for buffer in self._buffers.values() if buffer is not None), None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_ranges", {}) and name in self._buffers and not isinstance(value, bool):
            if isinstance(value, Real):
                value = self._checked_number(name, float(value))
            buffer = self._buffers[name]
            if buffer is not None and isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
                with torch.no_grad():
                    buffer.copy_(value.reshape([]).expand(buffer.shape))
                return
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CoefficientModule":
        """Applies ``fn`` as nn.Module does, for ``to``, ``cuda`` or ``half``. Then restores dtype and values of its own buffers."""
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self


def positive_int(name: str, value: int) -> int:
    """Converts ``value`` to a Python int; TorchScript does not accept NumPy integers such as gymnasium's ``n``.

    Raises:
        ValueError: ``value`` is less than 1.
        TypeError: ``value`` is not an integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number
