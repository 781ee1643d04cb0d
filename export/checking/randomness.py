"""Which outputs of a module are random, and whether an exported file draws them from the distribution of eager mode."""

import math
from typing import Any, Callable, Dict, Mapping, Set

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._torch_internals import argument_writes, dispatch_mode
from a2c_compiled.export.tracing.call import tensors_in

SAMPLES = 500
"""Number of samples of each random output: stored at export, and drawn from the file in ``verify``."""
# Largest number of elements of a sample that are stored.
_MAX_ELEMENTS = 64
# Probability of a false alarm in one comparison. Ten thousand comparisons, about those of 150 outputs, have a false alarm with a
# probability of at most one in a million.
_FALSE_ALARM = 1e-10
# Values that differ by less, relative to the largest one, count as equal: a file rounds differently.
_RESOLUTION = 1e-4
# Stands for infinity, so that sums and differences are numbers.
_INFINITE = 1e38

_DispatchMode: Any = dispatch_mode()


def random_outputs(run: Callable[[], Mapping[str, Tensor]]) -> Set[str]:
    """Returns the names of the outputs that operators compute from random numbers, even if such an output has the same value in two calls.

    Args:
        run: calls the module in eager mode and returns its outputs by name.
    """
    with _RandomTensors() as tracker:
        outputs = run()
    return {name for name, tensor in outputs.items() if tracker.is_random(tensor)}


class _RandomTensors(_DispatchMode):
    """Records which tensors are random: the results of operators that draw, and all tensors computed from random tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._random: Dict[int, Tensor] = {}  # by address; the tensors are kept, so that no address is used twice
        self._branches = False

    def is_random(self, tensor: Tensor) -> bool:
        """Returns whether a tensor depends on random numbers."""
        return self._branches or _address(tensor) in self._random

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = _generator_states()
        result = func(*args, **kwargs)
        read = tensors_in([*args, *kwargs.values()])
        if any(map(self.is_random, read)) or not all(map(torch.equal, before, _generator_states())):
            writes_to = [(i, name) for i, (name, writes) in enumerate(argument_writes(func)) if writes]
            changed = tensors_in([result, *(args[i] if i < len(args) else kwargs.get(name) for i, name in writes_to)])
            self._random.update((_address(tensor), tensor) for tensor in changed if _address(tensor))
            # A Python number, such as the result of item(): the module may branch on it, so all outputs count as random.
            self._branches = self._branches or (not changed and result is not None)
        return result


def _address(tensor: Tensor) -> int:
    """Returns the address of the memory that a tensor shares with its views; 0 if it is empty."""
    return tensor.untyped_storage().data_ptr()


def _generator_states() -> Any:
    """Returns the states of torch's random generators, on the CPU and on GPUs in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def samples(run: Callable[[], Mapping[str, Any]], names: Set[str]) -> Dict[str, np.ndarray]:
    """Calls ``run`` ``SAMPLES`` times, and returns the outputs ``names`` of all calls: float64, ``[calls, elements]``.

    Of an output with more than 64 elements, the same 64 are kept in every call.
    """
    rows: Dict[str, Any] = {name: [] for name in names}
    for _ in range(SAMPLES):
        outputs = run()
        for name in names:
            flat = np.asarray(outputs[name]).reshape(-1)
            some = np.linspace(0, flat.size - 1, min(flat.size, _MAX_ELEMENTS)).astype(int)
            rows[name].append(flat[some])
    return {name: np.stack(values).astype(np.float64) for name, values in rows.items()}


def same_distribution(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two sets of samples, ``[calls, elements]``, may come from one distribution.

    Compares each element's distribution function. Then compares two sums in the second half of the calls. The first adds all elements, each
    divided by its spread in the first half; it shows whether elements depend on each other. The second weights each of these by the
    difference of the means in the first half.
    """
    if one.shape != other.shape:
        return False
    one, other = (np.nan_to_num(rows, nan=3 * _INFINITE, posinf=2 * _INFINITE, neginf=-2 * _INFINITE) for rows in (one, other))
    half = len(one) // 2
    spread = one[:half].std(0)
    scale = np.where(spread > 0, spread, 1.0)
    direction = (other[:half].mean(0) - one[:half].mean(0)) / scale
    pairs = list(zip(one.T, other.T, strict=True))
    for weights in (1 / scale, direction / scale):
        pairs.append((one[half:] @ weights, other[half:] @ weights))
    return all(_distance(first, second) <= math.sqrt(math.log(2.17 / _FALSE_ALARM) / len(first)) for first, second in pairs)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference of two empirical distribution functions, where values that differ by rounding count as equal.

    Two samples of ``n`` numbers each, from one distribution, have a larger distance than ``d`` with probability at most
    ``2.17 exp(-n d^2)`` (Wei and Dudley, Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities, 2012).
    """
    magnitudes = np.abs([one, other])
    resolution = _RESOLUTION * float(magnitudes[magnitudes < _INFINITE].max(initial=0.0))
    return max(_excess(one, other, resolution), _excess(other, one, resolution))


def _excess(one: np.ndarray, other: np.ndarray, resolution: float) -> float:
    """Returns the maximum over v of F_one(v) - F_other(v + resolution), at least 0. F is the empirical distribution function."""
    at_or_below = np.searchsorted(np.sort(other), np.sort(one) + resolution, side="right")
    return float((np.arange(1, len(one) + 1) - at_or_below).max(initial=0)) / len(one)
