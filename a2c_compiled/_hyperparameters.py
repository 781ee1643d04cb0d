"""Hyperparameters that live in a module: saved with it, moved with it, changeable while it trains."""

import operator
from numbers import Real
from typing import Any, Callable, Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn


class Range(NamedTuple):
    """What numbers a coefficient may be; ``expected`` says it in a message."""

    expected: str
    low: float = -float("inf")
    high: float = float("inf")
    open_below: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise ValueError unless ``value`` is in range."""
        if not self.low <= value <= self.high or (self.open_below and value == self.low):
            raise ValueError(f"{name}: expected {self.expected}, got {value}")


ANY = Range("a number")
UNIT = Range("a number from 0 to 1", 0.0, 1.0)
NOT_NEGATIVE = Range("a number from 0 up", 0.0)
POSITIVE = Range("a positive number", 0.0, open_below=True)


class CoefficientModule(nn.Module):
    """A module whose own buffers are hyperparameters.

    A number is kept as a 0-d float64 tensor and keeps that precision when the module is converted to another dtype: 0.99 in bfloat16
    is 0.988. Assigning a number or a one-element tensor to such an attribute (``module.gamma = 0.9``) writes into the tensor, so that
    neither a compiled graph nor an optimizer over the module has to be made again.
    """

    _ranges: Dict[str, Range]  # by name; absent until the first is registered

    def register_coefficient(
        self,
        name: str,
        value: Optional[Union[float, Tensor]],
        allowed: Range = ANY,
        optional: bool = False,
        scalar: bool = False,
    ) -> None:
        """Register ``value`` under ``name``.

        Args:
            name: of the attribute.
            value: a number, or a tensor, which is copied unless it requires grad; where ``optional``, None switches off what it belongs to.
            allowed: which numbers, here and where one is assigned. Tensors are taken as they are: to check them would read the device.
            optional: whether None is allowed.
            scalar: whether a tensor must have one element.

        Raises:
            TypeError: the value is of another kind.
            ValueError: the number is out of range, or the tensor has more than one element.
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
                value = value.double()  # a fraction assigned later would be cut to an integer
            if not value.requires_grad:
                value = value.clone()  # what is assigned later is not to be written into the caller's
        self.register_buffer(name, value)

    def _checked_number(self, name: str, value: float) -> Tensor:
        self._ranges[name].check(name, value)
        return torch.tensor(value, dtype=torch.float64, device=self._coefficients_device())

    def _coefficients_device(self) -> Optional[torch.device]:
        """None where there is no coefficient yet."""
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
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self


def positive_int(name: str, value: int) -> int:
    """``value`` as a plain int, which TorchScript needs and gymnasium's ``n`` is not; else ValueError or TypeError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number
