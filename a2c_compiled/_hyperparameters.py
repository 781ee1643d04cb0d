"""Hyperparameters as buffers of a module: they are saved and moved with the module, and can be changed during training."""

from typing import Any, Callable, Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from a2c_compiled._kinds import integer, number_or_tensor


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

    def number(self, name: str, value: Any) -> float:
        """Converts a number, see :mod:`a2c_compiled._kinds`, to a Python float, which the host may have to read from a device.

        Raises:
            ValueError: the number is out of range, or a tensor does not have one element.
            TypeError: ``value`` is not a number.
        """
        number = number_or_tensor(name, value)
        result = float(single(name, number)) if isinstance(number, Tensor) else number
        self.check(name, result)
        return result


def single(name: str, tensor: Tensor) -> Tensor:
    """Returns a one-element tensor in zero dimensions. Raises ValueError if ``tensor`` has another number of elements."""
    if tensor.numel() != 1:
        raise ValueError(f"{name}: expected a number or a one-element tensor, got shape {list(tensor.shape)}")
    return tensor.reshape([]) if tensor.dim() > 0 else tensor


class _Rule(NamedTuple):
    """What may be assigned to a coefficient; the fields are arguments of :meth:`CoefficientModule.register_coefficient`."""

    allowed: Range
    optional: bool
    scalar: bool


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

    _rules: Dict[str, _Rule]  # by coefficient name; the attribute exists after the first registration

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
        rules: Dict[str, _Rule] = self.__dict__.setdefault("_rules", {})
        rules[name] = _Rule(allowed, optional, scalar)
        tensor = self._as_coefficient(name, value)
        if isinstance(value, Tensor) and tensor is not None and not tensor.requires_grad:
            tensor = tensor.clone()  # later assignments must not write into the caller's tensor
        self.register_buffer(name, tensor)

    def _as_coefficient(self, name: str, value: Any) -> Optional[Tensor]:
        """Checks ``value`` by the rule of the coefficient ``name``, and returns it as a floating tensor: a number as 0-d float64."""
        allowed, optional, scalar = self._rules[name]
        if optional and value is None:
            return None
        number = number_or_tensor(name, value)
        if not isinstance(number, Tensor):
            allowed.check(name, number)
            return torch.tensor(number, dtype=torch.float64, device=self._coefficients_device())
        tensor = single(name, number) if scalar else number
        # A fraction assigned later to an integer tensor would be rounded.
        return tensor if tensor.is_floating_point() else tensor.double()

    def _coefficients_device(self) -> Optional[torch.device]:
        """Returns the device of the registered coefficients, or None if no coefficient is registered yet."""
        return next((buffer.device for buffer in self._buffers.values() if buffer is not None), None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_rules", {}) and name in self._buffers:
            value = self._as_coefficient(name, value)
            buffer = self._buffers[name]
            if buffer is not None and value is not None and value.numel() == 1 and not value.requires_grad:
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


def check_seed(name: str, value: int) -> None:
    """Raises ValueError unless gymnasium and torch accept the seed ``value``: from 0 to below 2 ** 63; TypeError if it is no integer."""
    if not 0 <= integer(name, value) < 2**63:
        raise ValueError(f"{name}: expected a number from 0 to below 2 ** 63, got {value}")


def positive_int(name: str, value: int) -> int:
    """Converts ``value`` to a Python int; TorchScript does not accept NumPy integers such as gymnasium's ``n``.

    Raises:
        ValueError: ``value`` is less than 1, or does not fit in 64 bits.
        TypeError: ``value`` is not an integer.
    """
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    if number >= 2**63:  # torch and NumPy take no larger ones
        raise ValueError(f"{name}: expected an integer of 64 bits, got {number}")
    return number
