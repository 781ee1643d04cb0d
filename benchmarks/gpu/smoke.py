"""Checks every estimator against float64 on the CPU, forward and backward. Then times it, and a copy of the same number of bytes.

The shortest test of correctness and speed is ``python -m a2c_compiled.benchmarks.gpu.smoke [--device cpu|cuda]``. The exit status is
1 if a result is wrong. At the end, the GAE of peer libraries is checked and timed beside this library's. The results are written after
every check and every shape, so they are complete up to the moment at which a kernel hangs or a peer ends the process.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.contenders import estimator_peers
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import cuda, data, shapes
from a2c_compiled.benchmarks.measure.harness import Contender, Make, as_tensors, copy_contender, relative_error
from a2c_compiled.benchmarks.measure.shapes import Shape
from a2c_compiled.benchmarks.measure.timing import time_call
from a2c_compiled.benchmarks.subjects.bench_estimators import ESTIMATORS, GAE, TIME_DIM, Estimator, gradients

CPU = torch.device("cpu")
# Largest allowed error, relative to the largest magnitude in the expected tensor.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-11}
_PEER_TOLERANCE = 1e-4


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


def check_all(device: torch.device) -> Iterator[Dict[str, Any]]:
    """Runs every check for every estimator. A check that raises counts as wrong, and the other checks still run.

    Yields:
        One dict per estimator and check: "estimator", the fields of :class:`Check`, "error", a number or a message, and "right".
    """
    for estimator in ESTIMATORS:
        for check in CHECKS:
            entry: Dict[str, Any] = {"estimator": estimator.name, **check._asdict(), "dtype": str(check.dtype)}
            try:
                entry["error"] = error_of(estimator, check, device)
                entry["right"] = entry["error"] < TOLERANCES[check.dtype]
            except Exception as raised:  # a kernel may raise anything
                entry |= {"error": _message(raised), "right": False}
            if not entry["right"]:
                print("WRONG", *entry.values(), flush=True)
            yield entry


def time_estimators(device: torch.device, shape: Shape) -> List[Dict[str, Any]]:
    """Times every estimator in every layout at one shape, and prints a line.

    Args:
        device: device of the data.
        shape: (environments, steps).

    Returns:
        One dict per call, with times in seconds: "device" is the GPU time with a cold cache, "host" the time until the call returns,
        and "copy" the GPU time of a copy of the least number of bytes that the estimator moves. On a CPU, all three are the time of the
        call. If the call raised, "failure" holds the message.
    """
    steps = data.steps(shape, device)
    timings = []
    for estimator in ESTIMATORS:
        copy = _copy_seconds(estimator, shape, device)
        for layout in TIME_DIM:
            timings.append(_timed(estimator.name, layout, shape, copy, partial(_ours, estimator, steps, layout), device))
    print(_line(shape, timings), flush=True)
    return timings


def time_peers(device: torch.device, shape: Shape) -> List[Dict[str, Any]]:
    """Checks and times the GAE of this library and of every peer at one shape, and prints a line.

    The expected result is this library's in float64, on the device, which :func:`check_all` compared with the CPU. A peer that is missing,
    raises, or returns a wrong result has a "failure" and no times.

    Args, Returns: as for :func:`time_estimators`, with the "error" of each result. Each peer has data in its own layout.
    """
    steps = data.steps(shape, device)
    copy = _copy_seconds(GAE, shape, device)
    expected = as_tensors(GAE.module(-2)(**GAE.inputs({name: _widened(step) for name, step in steps.items()})))
    timings = []
    for layout in TIME_DIM:
        transposed = expected if layout == "[T, N]" else [tensor.t() for tensor in expected]
        timings.append(_timed(GAE.name, layout, shape, copy, partial(_ours, GAE, steps, layout), device, transposed))
    computation = estimator_peers.Computation(GAE.name, GAE.sources, steps, None, time_last=False)
    for name, make in estimator_peers.gpu_peers(computation, shapes.full(device)).items():
        timings.append(_timed(name, "own", shape, copy, make, device, expected))
    print(_line(shape, timings), flush=True)
    return timings


def _ours(estimator: Estimator, steps: Dict[str, Tensor], layout: str) -> Contender:
    """Creates the contender of this library, with data in ``layout``."""
    module = estimator.module(TIME_DIM[layout])
    inputs = estimator.inputs({name: step if layout == "[T, N]" else step.t().contiguous() for name, step in steps.items()})
    return Contender(lambda: module(**inputs))


def _timed(
    name: str,
    layout: str,
    shape: Shape,
    copy: float,
    make: Make,
    device: torch.device,
    expected: Optional[Sequence[Tensor]] = None,
) -> Dict[str, Any]:
    """Returns the entry of one contender, see :func:`time_estimators`. If ``expected`` is given, the result is checked first."""
    entry: Dict[str, Any] = {"contender": name, "layout": layout, "shape": shape, "copy": copy}
    try:
        with torch.no_grad():
            contender = make()
            if expected is not None:
                result = contender.to_result(contender.call())
                entry["error"] = relative_error(result, expected if contender.expected is None else contender.expected)
                if not entry["error"] < _PEER_TOLERANCE:
                    raise ValueError(f"result: expected a relative error below {_PEER_TOLERANCE:.0e}, got {entry['error']:.1e}")
            entry["device"] = _cold_seconds(contender.call, device)
            entry["host"] = cuda.host_seconds(contender.call, entry["device"]) if device.type == "cuda" else entry["device"]
    except Exception as raised:  # a peer library may raise anything
        entry["failure"] = _message(raised)
    return entry


def _copy_seconds(estimator: Estimator, shape: Shape, device: torch.device) -> float:
    """Returns the time of a copy of the least number of bytes that ``estimator`` moves."""
    return _cold_seconds(copy_contender(estimator.traffic(shape[0] * shape[1], "forward"), device)().call, device)


def _widened(step: Tensor) -> Tensor:
    return step.double() if step.is_floating_point() else step


def _line(shape: Shape, timings: Sequence[Dict[str, Any]]) -> str:
    """Returns one line of text for the entries of a shape."""
    parts = [f"{shape[0]}x{shape[1]}"]
    for entry in timings:
        label = f"{entry['contender']} {entry['layout']}"
        if "failure" in entry:
            parts.append(f"{label} {entry['failure'].partition(':')[0]}")
        else:
            percent = 100 * entry["copy"] / entry["device"]
            parts.append(f"{label} {1e6 * entry['device']:.1f}/{1e6 * entry['host']:.1f} {percent:.0f}%")
    return "  ".join(parts)


def _message(raised: Exception) -> str:
    """Returns the type and the first line of an error, at most 200 characters."""
    return f"{type(raised).__name__}: {(str(raised).strip().splitlines() or [''])[0]}"[:200]


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
    report: Dict[str, Any] = {"checks": [], "times": [], "peers": []}
    for entry in check_all(device):
        report["checks"].append(entry)
        _write(report, arguments.out)
    wrong = sum(not check["right"] for check in report["checks"])
    print(f"checks: {len(report['checks']) - wrong} right, {wrong} wrong")
    print(
        "GPU time, us / time until the call returns, us; and the time of a copy of the same number of bytes in % of the GPU time"
    )
    timed = shapes.SMOKE_SHAPES[: arguments.shapes]
    # Peers come last: a library that ends the process then costs no result of this library.
    for key, measure in (("times", time_estimators), ("peers", time_peers)):
        for shape in timed:
            report[key] += measure(device, shape)
            _write(report, arguments.out)
    for failure in sorted({f"{entry['contender']}: {entry['failure']}" for entry in report["peers"] if "failure" in entry}):
        print(failure)
    return 1 if wrong else 0


def _write(report: Dict[str, Any], out: Path) -> None:
    with atomic_file(out) as path:
        path.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    sys.exit(main())
