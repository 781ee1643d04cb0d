"""What was measured, and on what: kept as JSON."""

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import torch

from a2c_compiled._files import written_whole
from a2c_compiled.benchmarks.measure.harness import Row
from a2c_compiled.benchmarks.measure.machine import machine, versions
from a2c_compiled.benchmarks.measure.shapes import Plan
from a2c_compiled.benchmarks.measure.timing import Timing, time_call

PACKAGES = (
    *("a2c-compiled", "torch", "triton", "numpy", "onnxruntime", "torchrl", "stable-baselines3", "numba"),
    *("onnxruntime-gpu", "rl-triton", "pufferlib"),
)
_LARGE = {"cpu": 2**28, "cuda": 2**31}  # bytes; far more than any cache holds
_DERIVED = ("bandwidth",)


class Results(NamedTuple):
    """A run.

    Attributes:
        machine: processor, cores, threads of torch, and the GPU with its driver where one was used.
        versions: of Python and of the packages that took part.
        copy_bandwidth: bytes a second, read and written, of torch's copy of a large buffer.
        plan: shapes, number and length of samples.
        seconds: that the run has taken.
        rows: one for each contender in each case.
    """

    machine: Dict[str, Any]
    versions: Dict[str, str]
    copy_bandwidth: float
    plan: Dict[str, Any]
    seconds: float
    rows: List[Row]


def begin(plan: Plan) -> Results:
    """The machine, the versions and the bandwidth, with no rows yet."""
    described = {**plan._asdict(), "device": plan.device.type}
    return Results(machine(plan.device), versions(PACKAGES), copy_bandwidth(plan.device), described, 0.0, [])


def save(results: Results, path: Path) -> None:
    """Write JSON; the bandwidth of each row is written along."""
    rows = [
        {**row._asdict(), "timing": row.timing and row.timing._asdict(), **{name: getattr(row, name) for name in _DERIVED}}
        for row in results.rows
    ]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({**results._asdict(), "rows": rows}, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Results:
    """What :func:`save` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        contents = json.loads(path.read_text())
        return Results(**{**contents, "rows": [_row(row) for row in contents["rows"]]})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not results of this benchmark ({error})") from error


def _row(contents: Dict[str, Any]) -> Row:
    fields = {name: value for name, value in contents.items() if name not in _DERIVED}
    timing = None if fields["timing"] is None else Timing(**fields["timing"])
    return Row(**{**fields, "timing": timing, "shape": tuple(fields["shape"])})


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of torch's copy of a large buffer."""
    source, target = torch.ones(2, _LARGE[device.type] // 8, device=device)
    return 2 * source.nbytes / time_call(lambda: target.copy_(source), samples=5).median
