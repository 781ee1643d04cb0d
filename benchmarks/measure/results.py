"""Stores results, with the machine and the package versions, as JSON."""

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import torch

from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.measure.harness import Row
from a2c_compiled.benchmarks.measure.machine import machine, versions
from a2c_compiled.benchmarks.measure.shapes import Plan
from a2c_compiled.benchmarks.measure.timing import Timing, time_call

PACKAGES = (
    "a2c-compiled",
    "torch",
    "triton",
    "numpy",
    "onnxruntime",
    "torchrl",
    "stable-baselines3",
    "numba",
    "onnxruntime-gpu",
    "rl-triton",
    "pufferlib",
)
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}  # bytes of source and target together; more than the caches of most machines hold
# Properties of a Row that are saved for readers of the file.
_DERIVED = ("bandwidth",)


class Results(NamedTuple):
    """The results of one benchmark run.

    Attributes:
        machine: processor, cores, torch threads and system; also GPU, driver and CUDA version if a GPU was used.
        versions: versions of Python and of the benchmarked packages, by name.
        copy_bandwidth: bytes per second, see :func:`copy_bandwidth`.
        plan: the fields of :class:`~a2c_compiled.benchmarks.measure.shapes.Plan` by name; ``device`` is only the type of the device.
        seconds: duration of the run so far.
        rows: one row for each contender in each case.
    """

    machine: Dict[str, Any]
    versions: Dict[str, str]
    copy_bandwidth: float
    plan: Dict[str, Any]
    seconds: float
    rows: List[Row]


def begin(plan: Plan) -> Results:
    """Measures the copy bandwidth, and returns results without rows."""
    described = {**plan._asdict(), "device": plan.device.type}
    return Results(machine(plan.device), versions(PACKAGES), copy_bandwidth(plan.device), described, 0.0, [])


def save(results: Results, path: Path) -> None:
    """Writes ``results`` as JSON. Each row also holds its ``bandwidth``, which :func:`load` ignores."""
    rows = [
        {**row._asdict(), "timing": row.timing and row.timing._asdict(), **{name: getattr(row, name) for name in _DERIVED}}
        for row in results.rows
    ]
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**results._asdict(), "rows": rows}, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Results:
    """Reads the file that :func:`save` wrote.

    Raises:
        ValueError: the file does not hold such results.
    """
    try:
        contents = json.loads(path.read_text())
        return Results(**{**contents, "rows": [_row(row) for row in contents["rows"]]})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected results of a2c-compiled bench, got other contents ({error})") from error


def _row(contents: Dict[str, Any]) -> Row:
    """Converts a row of the file to a Row."""
    fields = {name: value for name, value in contents.items() if name not in _DERIVED}
    timing = None if fields["timing"] is None else Timing(**fields["timing"])
    return Row(**{**fields, "timing": timing, "shape": tuple(fields["shape"])})


def copy_bandwidth(device: torch.device) -> float:
    """Returns the bandwidth of torch's copy of a large buffer, in bytes per second. Bytes read and bytes written both count."""
    # Two rows of float32: 8 bytes per column.
    source, target = torch.ones(2, _COPIED_BYTES[device.type] // 8, device=device)
    return 2 * source.nbytes / time_call(lambda: target.copy_(source), samples=5).median
