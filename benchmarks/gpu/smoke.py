"""Checks every estimator against float64 on the CPU, forward and backward. Then times it, and a copy of the same number of bytes.

The shortest test of correctness and speed is ``python -m a2c_compiled.benchmarks.gpu.smoke [--device cpu|cuda]``. The exit status is
1 if a result is wrong. If rl-triton is installed, its GAE is timed too.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.contenders import estimator_peers
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import cuda, data, shapes
from a2c_compiled.benchmarks.measure.harness import as_tensors, copy_contender, relative_error
from a2c_compiled.benchmarks.measure.shapes import Shape
from a2c_compiled.benchmarks.measure.timing import time_call
from a2c_compiled.benchmarks.subjects.bench_estimators import ESTIMATORS, TIME_DIM, Estimator, gradients

CPU = torch.device("cpu")
# Largest allowed error, relative to the largest magnitude in the expected tensor.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-11}


class Check(NamedTuple):
    """Data on which an estimator is compared with float64.

    Attributes:
        shape: (environments, steps).
        layout: "[T, N]" or "[N, T]".
        dtype: dtype of the floating-point inputs.
        backward: whether the gradients are compared too.
    """

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
    """Returns the largest relative error of the results and, if ``check.backward``, of the gradients of all floating-point inputs.

    Args:
        estimator: the estimator.
        check: shape, layout and dtype of the data.
        device: device of the estimator; the expected result is computed on the CPU.
    """
    steps = data.steps(check.shape, CPU)
    # data.steps sets the next value to the next step's value within an episode; independent values also reveal a mix-up of the two.
    (steps["next_state_value"],) = data.cotangents(steps["reward"], 1)
    if check.layout == "[N, T]":
        steps = {name: step.t().contiguous() for name, step in steps.items()}
    host_cotangents = data.cotangents(steps["reward"], len(estimator.forward.outputs))
    host = {name: step.to(check.dtype) if step.is_floating_point() else step for name, step in estimator.inputs(steps).items()}
    module = estimator.module(TIME_DIM[check.layout])

    def result_of(inputs: Dict[str, Tensor]) -> List[Tensor]:
        sources = [inputs[name].requires_grad_(check.backward) for name in estimator.forward.values]
        results = as_tensors(module(**inputs))
        cotangents = [cotangent.to(results[0].device, results[0].dtype) for cotangent in host_cotangents]
        return [*results, *(gradients(sources, cotangents, results) if check.backward else [])]

    expected = result_of(widened(host))
    result = result_of({name: step.to(device) for name, step in host.items()})
    return relative_error([tensor.cpu() for tensor in result], expected)


def check_all(device: torch.device) -> List[Dict[str, Any]]:
    """Runs every check for every estimator. A check that raises counts as wrong, and the other checks still run.

    Returns:
        One dict per estimator and check: "estimator", the fields of :class:`Check`, "error", a number or a message, and "right".
    """
    checks = []
    for estimator in ESTIMATORS:
        for check in CHECKS:
            entry: Dict[str, Any] = {"estimator": estimator.name, **check._asdict(), "dtype": str(check.dtype)}
            try:
                entry["error"] = error_of(estimator, check, device)
                entry["right"] = entry["error"] < TOLERANCES[check.dtype]
            except Exception as raised:  # a kernel may raise anything
                entry |= {
                    "error": f"{type(raised).__name__}: {(str(raised).strip().splitlines() or [''])[0]}"[:200],
                    "right": False,
                }
            if not entry["right"]:
                print("WRONG", *entry.values(), flush=True)
            checks.append(entry)
    return checks


def time_all(device: torch.device, timed: Sequence[Shape]) -> List[Dict[str, Any]]:
    """Times every estimator in every layout at the shapes ``timed``, and prints one line per shape.

    Args:
        device: device of the data.
        timed: the shapes, (environments, steps).

    Returns:
        One dict per call, with times in seconds: "device" is the GPU time with a cold cache, "host" the time until the call returns,
        and "copy" the GPU time of a copy of the least number of bytes that the estimator moves. On a CPU, all three are the time of the
        call. If the call raised, "failure" holds the message.
    """
    timings = []
    for shape in timed:
        line = [f"{shape[0]}x{shape[1]}"]
        for estimator in ESTIMATORS:
            copy = _cold_seconds(copy_contender(estimator.traffic(shape[0] * shape[1], "forward"), device)().call, device)
            for layout, time_dim in TIME_DIM.items():
                calls = _calls(estimator, shape, layout, time_dim, device)
                for name, make in calls.items():
                    entry: Dict[str, Any] = {"contender": name, "layout": layout, "shape": shape, "copy": copy}
                    try:
                        with torch.no_grad():
                            call = make()
                            entry["device"] = _cold_seconds(call, device)
                            entry["host"] = (
                                cuda.host_seconds(call, entry["device"]) if device.type == "cuda" else entry["device"]
                            )
                        percent = 100 * copy / entry["device"]
                        line.append(f"{name} {layout} {1e6 * entry['device']:.1f}/{1e6 * entry['host']:.1f} {percent:.0f}%")
                    except Exception as raised:  # a peer library may raise anything
                        entry["failure"] = f"{type(raised).__name__}: {raised}"[:200]
                        line.append(f"{name} {layout} {type(raised).__name__}")
                    timings.append(entry)
        print("  ".join(line), flush=True)
    return timings


def _calls(
    estimator: Estimator, shape: Shape, layout: str, time_dim: int, device: torch.device
) -> Dict[str, Callable[[], Callable[[], Any]]]:
    """Returns, by contender name, functions that prepare the data and return the call to time."""
    steps = data.steps(shape, device)
    time_last = layout == "[N, T]"

    def ours() -> Callable[[], Any]:
        module = estimator.module(time_dim)
        inputs = estimator.inputs({name: step.t().contiguous() if time_last else step for name, step in steps.items()})
        return lambda: module(**inputs)

    calls: Dict[str, Callable[[], Callable[[], Any]]] = {estimator.name: ours}
    if time_last:
        computation = estimator_peers.Computation(estimator.name, estimator.sources, steps, None, time_last)
        peer = estimator_peers.estimator_peers(computation, shapes.full(device)).get("rl-triton")
        if peer is not None:
            calls["rl-triton"] = lambda: peer().call
    return calls


def _cold_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the median time of a call in seconds. On a GPU, the cache is overwritten before each call, and GPU time is measured."""
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
    """Runs the command line. Returns 1 if a result is wrong, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="device to check and time (default: cuda)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/smoke.json"),
        metavar="FILE",
        help="file for the results, JSON (default: runs/smoke.json)",
    )
    parser.add_argument(
        "--shapes", type=int, default=len(shapes.SMOKE_SHAPES), metavar="N", help="time only the first N shapes (default: all)"
    )
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    report: Dict[str, Any] = {"checks": check_all(device), "times": []}
    wrong = sum(not check["right"] for check in report["checks"])
    print(f"checks: {len(report['checks']) - wrong} right, {wrong} wrong")
    _write(report, arguments.out)  # keeps the checks even if the timing fails
    print(
        "GPU time, us / time until the call returns, us; and the time of a copy of the same number of bytes in % of the GPU time"
    )
    report["times"] = time_all(device, shapes.SMOKE_SHAPES[: arguments.shapes])
    _write(report, arguments.out)
    return 1 if wrong else 0


def _write(report: Dict[str, Any], out: Path) -> None:
    with atomic_file(out) as path:
        path.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    sys.exit(main())
