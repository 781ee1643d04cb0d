"""Contenders side by side: checked against the answer expected, then timed in turn."""

import gc
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled.benchmarks.measure import cuda
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.measure.timing import Timing, synchronize, time_interleaved

OURS = "a2c_compiled"
COPY = "copy"

# Bytes: data of that size is not left for the garbage collector to find.
_LARGE = 2**27

Answer = Sequence[Tensor]


def as_tensors(result: Any) -> List[Tensor]:
    """The tensors of a result, without the Nones."""
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


class Contender(NamedTuple):
    """A call to time, with its data ready; ``answer`` makes of its result what is expected, outside of the timing."""

    call: Callable[[], Any]
    answer: Callable[[Any], Answer] = as_tensors
    # Where it cannot be asked the common question, its own.
    expected: Optional[Answer] = None


Make = Callable[[], Contender]


class Field(NamedTuple):
    """The answer expected, in float64, and who is to give it: each is made when its turn comes."""

    expected: Answer
    contenders: Dict[str, Make]


class Case(NamedTuple):
    """One question at one shape.

    Attributes:
        subject: what is computed.
        direction: "forward", which runs without gradients, "forward+backward" or "whole".
        layout: of the data, as "[T, N]".
        shape: environments and steps.
        enter: makes the data and the contenders.
        traffic: bytes that cannot but be moved: every input read and every output written once.
        tolerance: largest error, relative to the largest magnitude of the answer.
    """

    subject: str
    direction: str
    layout: str
    shape: Shape
    enter: Callable[[], Field]
    traffic: Optional[int] = None
    tolerance: float = 1e-4


class Row(NamedTuple):
    """One contender in one case.

    Attributes:
        first_call: seconds from nothing but data to the first answer: scripting, exporting and compiling included.
        timing: of the full call; None where it was refused or failed.
        error: largest error of any output relative to its largest magnitude.
        device_seconds: what the GPU was busy for.
        host_seconds: until the call returned, whatever the GPU had left to do.
        failure: why there is no timing.
        traffic, times_copy: bytes that cannot but be moved, and the time as a multiple of a copy's that moves as many.
    """

    subject: str
    direction: str
    layout: str
    shape: Shape
    contender: str
    first_call: Optional[float] = None
    timing: Optional[Timing] = None
    error: Optional[float] = None
    device_seconds: Optional[float] = None
    host_seconds: Optional[float] = None
    failure: Optional[str] = None
    traffic: Optional[int] = None
    times_copy: Optional[float] = None

    @property
    def seconds(self) -> float:
        """The median of the full call, NaN where there is none."""
        return self.timing.median if self.timing else float("nan")

    @property
    def bandwidth(self) -> Optional[float]:
        """Bytes a second: of the time on the device where that is known, else of the full call."""
        return self.traffic / (self.device_seconds or self.seconds) if self.traffic and self.timing else None


def compare(case: Case, plan: Plan, announce: Callable[[str], object] = lambda name: None) -> List[Row]:
    """Ask every contender, and time those that answer right.

    One that raises, or whose answer is another one, gets a row that says so, and no timing.
    """
    with torch.set_grad_enabled(case.direction != "forward"):
        rows = _rows(case, plan, announce)
    if (case.traffic or 0) > _LARGE:
        gc.collect()
    copy = rows[COPY].seconds if COPY in rows else None
    return [row._replace(times_copy=row.seconds / copy) if copy and row.timing else row for row in rows.values()]


def _rows(case: Case, plan: Plan, announce: Callable[[str], object]) -> Dict[str, Row]:
    field = case.enter()
    rows: Dict[str, Row] = {}
    ready: Dict[str, Callable[[], Any]] = {}
    for name, make in field.contenders.items():
        announce(name)
        rows[name], call = _checked(case, name, make, field.expected)
        if call is not None:
            ready[name] = call
    timings = time_interleaved(ready, plan.samples, plan.sample_seconds, plan.budget_seconds, announce)
    for name, timing in timings.items():
        rows[name] = rows[name]._replace(timing=timing)
        if plan.device.type == "cuda":
            announce(f"{name}, on the device")
            device, host = cuda.device_seconds(ready[name], timing.median), cuda.host_seconds(ready[name], timing.median)
            rows[name] = rows[name]._replace(device_seconds=device, host_seconds=host)
    return rows


def _checked(case: Case, name: str, make: Make, expected: Answer) -> Tuple[Row, Optional[Callable[[], Any]]]:
    """The row of a contender after its first call, and the call if its answer is right."""
    row = Row(case.subject, case.direction, case.layout, case.shape, name, traffic=case.traffic)
    try:
        start = time.perf_counter()
        contender = make()
        result = contender.call()
        synchronize()
        row = row._replace(first_call=time.perf_counter() - start)
        error = relative_error(contender.answer(result), expected if contender.expected is None else contender.expected)
    except Exception as raised:  # whatever a peer may raise: the others are to be measured all the same
        first_line = (str(raised).strip().splitlines() or [""])[0]
        return row._replace(failure=f"{type(raised).__name__}: {first_line}"[:200]), None
    if error > case.tolerance:
        return row._replace(failure=f"answers otherwise: off by {error:.1e}, {case.tolerance:.0e} allowed"), None
    return row._replace(error=error), contender.call


def relative_error(answer: Answer, expected: Answer) -> float:
    """Largest error of any tensor, relative to the largest magnitude that was expected of it; infinite where NaN or of another shape."""
    if len(answer) != len(expected):
        return float("inf")
    worst = 0.0
    for actual, right in zip(answer, expected, strict=True):
        if actual.shape != right.shape:
            return float("inf")
        largest = right.detach().abs().max().double().clamp_min(1e-30)
        error = float((actual.detach().to(right.device).double() - right.detach().double()).abs().max() / largest)
        worst = max(worst, error) if error == error else float("inf")
    return worst


def copy_contender(traffic: int, device: torch.device) -> Make:
    """Moves ``traffic`` bytes and does nothing else: half of them read, half written, into memory that is ready."""

    def make() -> Contender:
        source, target = torch.empty(2, max(1, traffic // 8), device=device).fill_(1.0)
        return Contender(lambda: target.copy_(source), lambda _: [target], [source])

    return make
