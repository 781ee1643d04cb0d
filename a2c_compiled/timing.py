"""How long a call takes, on machines that are shared and noisy."""

import statistics
import time
from typing import Callable, List, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds a call: the median of several samples, and their lowest and highest fifth."""

    median: float
    low: float
    high: float


def time_call(function: Callable[[], object], samples: int = 30, sample_seconds: float = 0.01) -> Timing:
    """Time ``function``, called in samples of at least ``sample_seconds`` each, after one that warms up."""
    calls = 1
    while (seconds := _sample(function, calls)) < sample_seconds:
        calls = max(calls + 1, int(calls * min(10.0, 1.2 * sample_seconds / max(seconds, 1e-9))))
    times: List[float] = [_sample(function, calls) / calls for _ in range(samples)]
    low, _, _, high = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), low, high)


def _sample(function: Callable[[], object], calls: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
