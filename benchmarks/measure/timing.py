"""How long a call takes, on machines that are shared and noisy."""

import gc
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple

import torch

_FEWEST_SAMPLES = 3


class Timing(NamedTuple):
    """Seconds a call: the median of several samples, and their lowest and highest fifth."""

    median: float
    low: float
    high: float
    samples: int = 1


def time_call(function: Callable[[], object], samples: int = 30, sample_seconds: float = 0.01) -> Timing:
    """Time ``function``, called in samples of at least ``sample_seconds`` each, after one that warms up."""
    return time_interleaved({"": function}, samples, sample_seconds)[""]


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    samples: int = 30,
    sample_seconds: float = 0.01,
    budget_seconds: float = float("inf"),
    announce: Callable[[str], object] = lambda name: None,
) -> Dict[str, Timing]:
    """Time functions against each other: one sample of each, again and again, so that whatever slows the machine slows all alike.

    Args:
        functions: by name.
        samples: of each function.
        sample_seconds: least length of a sample, which holds as many calls as that takes.
        budget_seconds: for all samples of one function; a slow one gets fewer of them, though never fewer than three.
        announce: told what is going on.
    """
    calls: Dict[str, int] = {}
    taken: Dict[str, int] = {}
    for name, function in functions.items():
        announce(name)
        calls[name], seconds = _calls_a_sample(function, sample_seconds)
        affordable = int(budget_seconds / seconds) if budget_seconds < samples * seconds else samples
        taken[name] = min(samples, max(_FEWEST_SAMPLES, affordable))
    announce("all in turn")
    times: Dict[str, List[float]] = {name: [] for name in functions}
    with _no_garbage_collection():
        for i in range(samples):
            for name, function in functions.items():
                if i * taken[name] % samples < taken[name]:  # spread over the whole time
                    times[name].append(_sample(function, calls[name]) / calls[name])
    return {name: _summary(seconds) for name, seconds in times.items()}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """As in timeit: whom it strikes is chance."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _calls_a_sample(function: Callable[[], object], sample_seconds: float) -> tuple[int, float]:
    """How many calls fill a sample, and the seconds that they take; warms up by the way."""
    calls = 1
    seconds = _sample(function, calls)
    if sample_seconds < seconds < 1.0:
        seconds = _sample(function, calls)  # the first calls of what compiles itself say nothing
    while seconds < sample_seconds:
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
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
