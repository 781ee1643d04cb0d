"""What only a GPU has: graphs of kernels, and a time of its own."""

import statistics
import time
from typing import Any, Callable, Optional

import torch

# Beyond, the profiler's own work is no longer small, and the time of the full call says as much.
_LONGEST_PROFILED = 0.1


def captured(call: Callable[[], Any], restore: Callable[[], object] = lambda: None) -> Callable[[], Any]:
    """``call`` as a CUDA graph, replayed into the same memory every time; ``restore`` undoes what warming up has done."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        restore()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def device_seconds(call: Callable[[], Any], seconds: float) -> Optional[float]:
    """Time that the kernels and copies of one call took, added up: gaps between them are the host's, not the device's.

    None for a call of more than a tenth of a second (``seconds``), and for one that leaves the GPU alone.
    """
    if seconds > _LONGEST_PROFILED:
        return None
    calls = max(1, min(20, int(0.01 / seconds)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    return 1e-6 * microseconds / calls if microseconds else None


def host_seconds(call: Callable[[], Any], seconds: float) -> float:
    """Median time until a call returns, with nothing queued before it."""
    times = []
    for _ in range(max(3, min(20, int(0.1 / seconds)))):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times)
