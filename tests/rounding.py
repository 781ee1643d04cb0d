"""How far rounding may move a result: the oracle's loop over absolute values, in which every operation also rounds.

The oracle runs on a :class:`Magnitude` in place of each tensor. Each sum and each difference then adds absolute values, and each product
multiplies them. The gradients of the sizes are the oracle's gradients, with each path through the computation counted by its absolute
value. With a ``growth`` of g, each operation multiplies the size by 1 + g: the derivative in g counts each term as often as a loop
rounds it.
"""

import functools
from typing import Any, Callable, List, Tuple

import torch
from torch import Tensor

_NEAR = 2.0**-17  # A comparison is undecided if its sides are not equal, but differ by less than this part of their size.


class Float64:
    """The plain run of the oracle: its variables are float64 tensors."""

    def leaf(self, value: Tensor) -> Any:
        return value.detach().clone().requires_grad_()

    def undecided(self) -> List[Tensor]:
        return []


class Magnitudes(Float64):
    """A run of the oracle over magnitudes.

    Args:
        growth: by how much the size of a result grows with each operation.
    """

    def __init__(self, growth: float = 0.0) -> None:
        self.factor = 1.0 + growth
        self.near: List[Tensor] = []

    def leaf(self, value: Tensor) -> Any:
        return Magnitude(value.detach(), value.detach().abs().requires_grad_(), self)

    def undecided(self) -> List[Tensor]:
        """Returns the comparisons since the last call, as flags: True where rounding may turn the comparison."""
        found, self.near = self.near, []
        return found


class Magnitude:
    """A float64 tensor, without gradient, and its size: the same computation over absolute values, differentiable."""

    def __init__(self, value: Tensor, size: Tensor, arithmetic: Magnitudes) -> None:
        self.value, self.size, self.arithmetic = value, size, arithmetic

    def rounded(self, value: Tensor, size: Tensor, operations: int = 1) -> "Magnitude":
        return Magnitude(value, size * self.arithmetic.factor**operations, self.arithmetic)

    def __add__(self, other: Any) -> "Magnitude":
        value, size = value_and_size(other)
        return self.rounded(self.value + value, self.size + size)

    def __mul__(self, other: Any) -> "Magnitude":
        value, size = value_and_size(other)
        return self.rounded(self.value * value, self.size * size)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Magnitude":
        return Magnitude(-self.value, self.size, self.arithmetic)

    def __sub__(self, other: Any) -> "Magnitude":
        return self + -other

    def __rsub__(self, other: Any) -> "Magnitude":
        return -self + other

    def __truediv__(self, other: float) -> "Magnitude":
        return self * (1.0 / other)

    def __le__(self, other: Any) -> Tensor:
        return (self - other)._compared() <= 0

    def __ge__(self, other: Any) -> Tensor:
        return (self - other)._compared() >= 0

    def _compared(self) -> Tensor:
        """Returns the value, and records where rounding may change its sign. Infinite sizes come from infinite thresholds."""
        distance = self.value.abs()
        self.arithmetic.near.append((distance > 0) & (distance < _NEAR * self.size) & distance.isfinite())
        return self.value

    def __pow__(self, exponent: Tensor) -> "Magnitude":
        return self.rounded(self.value**exponent, self.size**exponent, operations=2)

    def exp(self) -> "Magnitude":
        value = self.value.exp()
        return self.rounded(value, value * (1.0 + self.size))

    def sum(self) -> "Magnitude":
        return self.rounded(self.value.sum(), self.size.sum(), operations=self.value.numel().bit_length())

    def detach(self) -> "Magnitude":
        return Magnitude(self.value, self.size.detach(), self.arithmetic)

    def double(self) -> "Magnitude":
        return self

    def unbind(self, dim: int) -> List["Magnitude"]:
        return [Magnitude(*parts, self.arithmetic) for parts in zip(self.value.unbind(dim), self.size.unbind(dim), strict=True)]

    def split(self, sizes: List[int], dim: int) -> List["Magnitude"]:
        parts = zip(self.value.split(sizes, dim), self.size.split(sizes, dim), strict=True)
        return [Magnitude(*part, self.arithmetic) for part in parts]

    def __getitem__(self, index: Any) -> "Magnitude":
        return self._moved(lambda x: x[index])

    def __getattr__(self, name: str) -> Any:
        """Properties of the tensor, and methods that move entries."""
        if name in ("dim", "dtype", "numel", "shape"):
            return getattr(self.value, name)
        if name in ("expand", "movedim", "reshape", "select", "squeeze", "take", "unsqueeze"):
            return lambda *arguments: self._moved(lambda x: getattr(x, name)(*arguments))
        raise AttributeError(name)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Magnitude":
        return Magnitude(move(self.value), move(self.size), self.arithmetic)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function is torch.exp:
            return arguments[0].exp()
        tensors = arguments[0] if function in (torch.cat, torch.stack) else arguments
        arithmetic = next(x.arithmetic for x in tensors if isinstance(x, cls))
        values, sizes = zip(*map(value_and_size, tensors), strict=True)
        if function is torch.broadcast_tensors:
            return [Magnitude(*pair, arithmetic) for pair in zip(function(*values), function(*sizes), strict=True)]
        if function in (torch.cat, torch.stack):
            run = functools.partial(function, **options)
            return Magnitude(run(values, *arguments[1:]), run(sizes, *arguments[1:]), arithmetic)
        if function is torch.where:
            return Magnitude(torch.where(*values), torch.where(arguments[0], *sizes[1:]), arithmetic)
        return NotImplemented


def value_and_size(x: Any) -> Tuple[Tensor, Tensor]:
    """Returns value and size of a magnitude, a tensor or a number. Flags have themselves as their size."""
    if isinstance(x, Magnitude):
        return x.value, x.size
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return x, x
    value = torch.as_tensor(x, dtype=torch.float64)
    return value, value.abs()


def through(function: Callable[..., Tensor], *inputs: Any, floor: float = 1.0) -> Any:
    """Applies ``function``, whose rows are independent: ``[M, K]`` each to ``[M]``.

    The size of the result is the sum of the absolute values of all first derivatives, each times the size of its input, plus the result's
    own absolute value and ``floor``, for terms of order one inside ``function`` that cancel.
    """
    if not any(isinstance(x, Magnitude) for x in inputs):
        return function(*inputs)
    leaves = [value_and_size(x)[0].detach().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves, materialize_grads=True, allow_unused=True)
    size = value.detach().abs() + floor
    for gradient, x in zip(gradients, inputs, strict=True):
        size = size + ((gradient.abs() + floor) * value_and_size(x)[1]).sum(-1)
    one = next(x for x in inputs if isinstance(x, Magnitude))
    return one.rounded(value.detach(), size, operations=4)
