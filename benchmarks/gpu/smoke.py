"""Every estimator against float64 on the CPU, forward and backward, then its time beside that of a copy of as many bytes.

The shortest answer to: does it run, is it right, how fast. ``python -m a2c_compiled.benchmarks.gpu.smoke [--device cpu|cuda]``; the exit
status is 1 where an answer is wrong. GAE is timed beside rl-triton's, where that is installed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled._files import written_whole
from a2c_compiled.benchmarks.contenders import estimator_peers
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import cuda, data, shapes
from a2c_compiled.benchmarks.measure.harness import as_tensors, copy_contender, relative_error
from a2c_compiled.benchmarks.measure.shapes import Shape
from a2c_compiled.benchmarks.measure.timing import time_call
from a2c_compiled.benchmarks.subjects.bench_estimators import ESTIMATORS, TIME_DIM, Estimator, gradients

CPU = torch.device("cpu")
# The largest error, relative to the largest magnitude that was expected.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-11}


class Check(NamedTuple):
    """What is compared with float64."""

    shape: Shape
    layout: str
    dtype: torch.dtype = torch.float32
    backward: bool = True


CHECKS = (
    Check((8, 5), "[T, N]"),
    Check((37, 129), "[T, N]"),
    Check((37, 129), "[N, T]"),
    Check((3, 5000), "[N, T]"),
    Check((5000, 3), "[T, N]"),
    Check((2, 70000), "[N, T]", backward=False),
    Check((2, 70000), "[T, N]", backward=False),
    Check((64, 512), "[T, N]", torch.bfloat16),
    Check((64, 512), "[N, T]", torch.float64),
    Check((1, 1), "[T, N]"),
)


def error_of(estimator: Estimator, check: Check, device: torch.device) -> float:
    """The largest of results and gradients."""
    steps = data.steps(check.shape, CPU)
    # Values of their own: within an episode a step's next value would else be the next step's value.
    (steps["next_state_value"],) = data.cotangents(steps["reward"], 1)
    if check.layout == "[N, T]":
        steps = {name: step.t().contiguous() for name, step in steps.items()}
    given = data.cotangents(steps["reward"], len(estimator.forward.outputs))
    host = {name: step.to(check.dtype) if step.is_floating_point() else step for name, step in estimator.inputs(steps).items()}
    module = estimator.module(TIME_DIM[check.layout])

    def answer(inputs: Dict[str, Tensor]) -> List[Tensor]:
        sources = [inputs[name].requires_grad_(check.backward) for name in estimator.forward.values]
        results = as_tensors(module(**inputs))
        cotangents = [one.to(results[0].device, results[0].dtype) for one in given]
        return [*results, *(gradients(sources, cotangents, results) if check.backward else [])]

    expected = answer(widened(host))
    return relative_error([one.cpu() for one in answer({name: step.to(device) for name, step in host.items()})], expected)


def check_all(device: torch.device) -> List[Dict[str, Any]]:
    """Every check of every estimator; one that raises does not end the others."""
    found = []
    for estimator in ESTIMATORS:
        for check in CHECKS:
            one: Dict[str, Any] = {"estimator": estimator.name, **check._asdict(), "dtype": str(check.dtype)}
            try:
                one["error"] = error_of(estimator, check, device)
                one["right"] = one["error"] < TOLERANCES[check.dtype]
            except Exception as raised:  # whatever a kernel may raise
                one |= {
                    "error": f"{type(raised).__name__}: {(str(raised).strip().splitlines() or [''])[0]}"[:200],
                    "right": False,
                }
            if not one["right"]:
                print("WRONG", *one.values(), flush=True)
            found.append(one)
    return found


def time_all(device: torch.device, timed: Sequence[Shape]) -> List[Dict[str, Any]]:
    """Every estimator, layout and shape: seconds on the device with nothing in its cache, on the host until the call returns, of a copy."""
    found = []
    for shape in timed:
        line = [f"{shape[0]}x{shape[1]}"]
        for estimator in ESTIMATORS:
            copy = _cold_seconds(copy_contender(estimator.traffic(shape[0] * shape[1], "forward"), device)().call, device)
            for layout, time_dim in TIME_DIM.items():
                calls = _calls(estimator, shape, layout, time_dim, device)
                for name, make in calls.items():
                    one: Dict[str, Any] = {"contender": name, "layout": layout, "shape": shape, "copy": copy}
                    try:
                        with torch.no_grad():
                            call = make()
                            one["device"] = _cold_seconds(call, device)
                            one["host"] = cuda.host_seconds(call, one["device"]) if device.type == "cuda" else one["device"]
                        percent = 100 * copy / one["device"]
                        line.append(f"{name} {layout} {1e6 * one['device']:.1f}/{1e6 * one['host']:.1f} {percent:.0f}%")
                    except Exception as raised:  # whatever a peer may raise
                        one["failure"] = f"{type(raised).__name__}: {raised}"[:200]
                        line.append(f"{name} {layout} {type(raised).__name__}")
                    found.append(one)
        print("  ".join(line), flush=True)
    return found


def _calls(
    estimator: Estimator, shape: Shape, layout: str, time_dim: int, device: torch.device
) -> Dict[str, Callable[[], Callable[[], Any]]]:
    """By name: what makes the data ready and gives the call to time."""
    steps = data.steps(shape, device)
    rows = layout == "[N, T]"

    def ours() -> Callable[[], Any]:
        module = estimator.module(time_dim)
        inputs = estimator.inputs({name: step.t().contiguous() if rows else step for name, step in steps.items()})
        return lambda: module(**inputs)

    found: Dict[str, Callable[[], Callable[[], Any]]] = {estimator.name: ours}
    if rows:
        asked = estimator_peers.Question(estimator.name, estimator.sources, steps, None, rows)
        peer = estimator_peers.estimator_peers(asked, shapes.full(device)).get("rl-triton")
        if peer is not None:
            found["rl-triton"] = lambda: peer().call
    return found


def _cold_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time on the device; on a GPU each call finds its data in memory, not in the cache."""
    if device.type != "cuda":
        return time_call(call, samples=5, sample_seconds=1e-4).median
    for _ in range(3):
        call()
    larger_than_any_cache = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    pairs = []
    for _ in range(15):
        larger_than_any_cache.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/smoke.json"), metavar="FILE")
    parser.add_argument("--shapes", type=int, default=len(shapes.SMOKE_SHAPES), metavar="N", help="time the first N alone")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    found: Dict[str, Any] = {"checks": check_all(device), "times": []}
    wrong = sum(not check["right"] for check in found["checks"])
    print(f"checks: {len(found['checks']) - wrong} right, {wrong} wrong")
    _write(found, arguments.out)  # whatever becomes of the times
    print("us on the device / us until the call returns, and the device's speed in % of a copy's of as many bytes")
    found["times"] = time_all(device, shapes.SMOKE_SHAPES[: arguments.shapes])
    _write(found, arguments.out)
    return 1 if wrong else 0


def _write(found: Dict[str, Any], out: Path) -> None:
    with written_whole(out) as path:
        path.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    sys.exit(main())
