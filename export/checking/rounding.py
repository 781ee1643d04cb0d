"""Measures how rounding errors change the outputs of a module, and derives tolerances.

An exported file computes with the same precision as eager mode, but with other rounding: a runtime adds in another order and uses another
implementation of ``exp``. The tolerance is therefore the change of eager mode's outputs when its operators round differently. At export, a
reference case (inputs and outputs of eager mode) is computed again in float64, and four times with noise of the size of a rounding error on
the result of each operator. The largest change of each element is stored. A choice, such as the index of the largest logit, may differ from
eager mode's only where one of these runs chose differently.
"""

import copy
import functools
from typing import Any, Dict, Iterator, Optional

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._torch_internals import argument_writes, dispatch_mode
from a2c_compiled.export.tracing.call import Call, tensors_in

_NOISY_RUNS = 4
_NO_ERROR = np.iinfo(np.int16).min
_ANY_ERROR = np.iinfo(np.int16).max
# The tolerance of a real output is _FACTOR * max(error of its element, error of the median element) + _FLOOR * magnitude + the smallest
# normal number. The magnitude is the largest finite one in the output, and at least 1 for float64. For the new state of a training step, it
# is also at least _CHANGE_FACTOR times the largest change: an optimizer divides a gradient by its own size, and all terms of the sum in a
# gradient may be rounded in one direction.
_FACTOR = 64.0
_CHANGE_FACTOR = 100.0
_FLOOR = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-6, np.dtype(np.float16): 4e-3}

_SUMS = (torch.ops.aten.sum, torch.ops.aten.mean)

_DispatchMode: Any = dispatch_mode()


class RoundingErrors:
    """Computes the errors of eager mode's outputs for one module.

    Args:
        call: module and example inputs.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._generator = torch.Generator().manual_seed(0)
        self._wide: Optional[Call] = None
        try:
            self._wide = copy.deepcopy(call)
            for module in (self._wide.module, self._wide.source):
                module.double()
        except Exception:
            self._wide = None  # the module has no float64 form; the noisy runs remain

    def of(self, inputs: Dict[str, Tensor], outputs: Dict[str, Tensor]) -> Dict[str, np.ndarray]:
        """Returns the largest error of each element of each output, by name.

        Args:
            inputs: inputs of a call, by name.
            outputs: outputs of eager mode for these inputs, by name.

        Returns:
            int16 arrays in the shapes of the outputs: the error is at most two to this power. The smallest int16 means no error, the
            largest that any value is accepted.
        """
        largest = {name: np.zeros(tensor.shape) for name, tensor in outputs.items()}
        for others in self._runs(inputs):
            for name, tensor in outputs.items():
                error = difference(others[name].cpu().numpy(), tensor.cpu().numpy())
                largest[name] = np.maximum(largest[name], error)
        return {name: _exponents(error) for name, error in largest.items()}

    def _runs(self, inputs: Dict[str, Tensor]) -> Iterator[Dict[str, Tensor]]:
        """Yields the outputs in float64, then those of the noisy runs."""
        if self._wide is not None:
            try:
                yield self._wide.eager({name: _widened(tensor) for name, tensor in inputs.items()})
            except Exception:
                self._wide = None  # the module has no float64 form
        for _ in range(_NOISY_RUNS):
            with _RoundingNoise(self._generator):
                outputs = self._call.eager(inputs)
            yield outputs


class _RoundingNoise(_DispatchMode):
    """Adds noise to the results of operators that round, about as large as their rounding errors.

    An element is rounded if the operator returns another number for it in float64. Copies, comparisons, choices and sums of integers stay
    exact.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not _makes_new_numbers(func) or not any(map(_is_narrow, tensors_in(result))):
            return result
        wide_args, wide_kwargs = _all_widened(args), {name: _all_widened(value) for name, value in kwargs.items()}
        try:
            exact = sizes = func(*wide_args, **wide_kwargs)
            if func.overloadpacket in _SUMS:  # the error of a sum depends on the sizes of its terms
                sizes = func(wide_args[0].abs(), *wide_args[1:], **wide_kwargs)
        except Exception:
            return result  # no float64 kernel
        for rounded, wide, size in zip(*map(tensors_in, (result, exact, sizes)), strict=True):
            if _is_narrow(rounded) and wide.dtype == torch.float64:
                self._perturb(rounded, wide, size)
        return result

    def _perturb(self, rounded: Tensor, exact: Tensor, size: Tensor) -> None:
        """Adds noise in place, where an element is rounded: at most its rounding error plus ``2 * eps * size``.

        ``size``: the sum of the absolute terms for sums, else the exact result.
        """
        error = (exact - rounded).abs_()
        error += (error > 0) * size.abs() * (2 * torch.finfo(rounded.dtype).eps)
        noise = torch.rand(rounded.shape, generator=self._generator).to(rounded.device) * 2 - 1
        rounded += (error * noise).nan_to_num_(0.0, 0.0, 0.0)


@functools.cache
def _makes_new_numbers(operator: Any) -> bool:
    """Returns whether the results of an operator are new tensors and not random."""
    return torch.Tag.nondeterministic_seeded not in operator.tags and all(
        writes is None for _, writes in argument_writes(operator)
    )


def _is_narrow(tensor: Tensor) -> bool:
    """Returns whether the dtype is float32 or float16."""
    return tensor.dtype in (torch.float32, torch.float16)


def _widened(tensor: Tensor) -> Tensor:
    """Returns a tensor of real numbers in float64, another tensor unchanged."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _all_widened(value: Any) -> Any:
    """Applies :func:`_widened` in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(_all_widened(entry) for entry in value)
    return _widened(value) if isinstance(value, Tensor) else value


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns absolute differences in float64. Equal infinities and two NaNs have difference 0; any other non-finite pair has infinity."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.nan_to_num(np.where(same, 0.0, np.abs(one - other)), nan=np.inf, posinf=np.inf)


def _exponents(error: np.ndarray) -> np.ndarray:
    """Returns int16 exponents e with error < 2^e: the smallest int16 for no error, the largest for an infinite one."""
    exponents = np.where(error > 0, np.frexp(error)[1], _NO_ERROR)
    return np.where(np.isinf(error), _ANY_ERROR, exponents).astype(np.int16)


def within_rounding(
    actual: np.ndarray, expected: np.ndarray, exponents: np.ndarray, before: Optional[np.ndarray] = None
) -> bool:
    """Returns whether every element of ``actual`` differs from ``expected`` by rounding errors only. All shapes are equal.

    Args:
        actual: an output of an exported file.
        expected: the output of eager mode, in the same dtype.
        exponents: the errors of eager mode, from :meth:`RoundingErrors.of`.
        before: the old state, if the output is the new state of a training step.
    """
    if not expected.size:
        return True
    with np.errstate(over="ignore"):
        error = np.where(exponents == _NO_ERROR, 0.0, np.ldexp(1.0, exponents.astype(np.int32)))
    if expected.dtype not in _FLOOR:
        return bool((difference(actual, expected) <= error).all())
    magnitude = max(_largest(expected), 1.0 if expected.dtype == np.float64 else 0.0)
    if before is not None:
        magnitude = max(magnitude, _CHANGE_FACTOR * _largest(expected - before))
    floor = _FLOOR[expected.dtype] * magnitude + float(np.finfo(expected.dtype).tiny)
    return bool((difference(actual, expected) <= _FACTOR * np.maximum(error, np.median(error)) + floor).all())


def _largest(x: np.ndarray) -> float:
    """Returns the largest finite magnitude."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
