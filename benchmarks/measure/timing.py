"""Times calls on shared, noisy machines."""

import gc
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple

import torch

_MIN_SAMPLES = 3


class Timing(NamedTuple):
    """Elapsed seconds per call until the GPU has finished, over several samples. A sample is the mean over one or more calls.

    Attributes:
        median: the median over the samples.
        low: the 20th percentile.
        high: the 80th percentile.
        samples: number of samples.
    """

    median: float
    low: float
    high: float
    samples: int = 1


def time_call(function: Callable[[], object], samples: int = 30, sample_seconds: float = 0.01) -> Timing:
    """Times ``function`` after a warm-up, in ``samples`` samples of at least ``sample_seconds`` each."""
    return time_interleaved({"": function}, samples, sample_seconds)[""]


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    samples: int = 30,
    sample_seconds: float = 0.01,
    budget_seconds: float = float("inf"),
    announce: Callable[[str], object] = lambda name: None,
) -> Dict[str, Timing]:
    """Times functions in turn: a round takes at most one sample of each function, so a slow phase of the machine affects all of them.

    Args:
        functions: the functions by name.
        samples: number of samples per function.
        sample_seconds: shortest duration of a sample. A sample has as many calls as are needed to reach it.
        budget_seconds: time for all samples of one function. A slow function gets fewer samples, but at least three, or
            ``samples`` if that is less.
        announce: receives progress messages, such as the name of the function that is prepared.

    Returns:
        The timing of each function by name.
    """
    calls: Dict[str, int] = {}
    taken: Dict[str, int] = {}
    for name, function in functions.items():
        announce(name)
        calls[name], duration = _calls_per_sample(function, sample_seconds)
        affordable = samples if samples * duration <= budget_seconds else int(budget_seconds / duration)
        taken[name] = min(samples, max(_MIN_SAMPLES, affordable))
    announce("timing in turn")
    times: Dict[str, List[float]] = {name: [] for name in functions}
    with _no_garbage_collection():
        for i in range(samples):
            for name, function in functions.items():
                if i * taken[name] % samples < taken[name]:  # in taken[name] rounds, spread evenly
                    times[name].append(_sample(function, calls[name]) / calls[name])
    return {name: _summary(seconds) for name, seconds in times.items()}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables garbage collection, as ``timeit`` does: a collection would lengthen random samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _calls_per_sample(function: Callable[[], object], sample_seconds: float) -> tuple[int, float]:
    """Returns the number of calls that fill a sample, and the duration of all of them in seconds. Also warms up ``function``."""
    calls = 1
    seconds = _sample(function, calls)
    if sample_seconds < seconds < 1.0:
        # The first call may have compiled, so its duration is not typical. A call of 1 s or more is too long to repeat.
        seconds = _sample(function, calls)
    while seconds < sample_seconds:  # aims at 1.2 * sample_seconds, at most ten times as many calls as before
        calls = max(calls + 1, int(calls * min(10.0, 1.2 * sample_seconds / max(seconds, 1e-9))))
        seconds = _sample(function, calls)
    return calls, seconds


def _summary(seconds: List[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0])
    low, _, _, high = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), low, high, len(seconds))


def _sample(function: Callable[[], object], calls: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits until the GPU has finished; does nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
