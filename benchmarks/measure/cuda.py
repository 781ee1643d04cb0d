"""CUDA graph capture, the GPU time of a call, and the time until a call returns."""

import statistics
import time
from typing import Any, Callable, Optional

import torch

# Calls that take more seconds than this are not profiled: the profiler adds too much work, and the elapsed time is precise enough.
_MAX_PROFILED_SECONDS = 0.1


def captured(call: Callable[[], Any], restore: Callable[[], object] = lambda: None) -> Callable[[], Any]:
    """Captures ``call`` as a CUDA graph and returns a function that replays it.

    Every replay writes to the same memory and returns the same result tensors.

    Args:
        call: the function to capture, which first runs three times as a warm-up.
        restore: runs after the warm-up and before the capture, to undo the side effects of the warm-up.
    """
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
    """Returns the GPU time of one call: the sum over its kernels and copies, as the mean of 1 to 20 calls.

    Gaps between kernels do not count, because the CPU causes them.

    Args:
        call: the function to profile.
        seconds: elapsed seconds per call until the GPU has finished.

    Returns:
        Seconds. None if ``seconds`` is above 0.1, or if the call does not use the GPU.
    """
    if seconds > _MAX_PROFILED_SECONDS:
        return None
    calls = max(1, min(20, int(0.01 / seconds)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    return 1e-6 * microseconds / calls if microseconds else None


def host_seconds(call: Callable[[], Any], seconds: float) -> float:
    """Returns the median of the elapsed seconds until a call returns. The GPU is idle at the start of each call.

    Args:
        call: the function to time.
        seconds: elapsed seconds per call until the GPU has finished; sets the number of samples, 3 to 20.
    """
    times = []
    for _ in range(max(3, min(20, int(0.1 / seconds)))):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times)
