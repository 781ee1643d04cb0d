"""Compares contenders. A contender is one implementation of a computation, of this library or of another one.

Checks each contender's result, then times the contenders whose result is correct, alternating between them.
"""

import gc
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled.benchmarks.measure import cuda
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.measure.timing import Timing, synchronize, time_interleaved

OURS = "a2c_compiled"
"""Prefix of the names of this library's contenders."""
COPY = "copy"
"""Name of the contender that only copies memory, see :func:`copy_contender`."""
PRODUCTS = "products alone"
"""Name of the contender of :mod:`a2c_compiled.benchmarks.contenders.products`."""
BOUNDS = (COPY, PRODUCTS)
"""Names of the contenders that do a part of the work."""

# Cases that move more bytes than this end with a garbage collection, which frees their tensors before the next case.
_LARGE_TRAFFIC = 2**27

Result = Sequence[Tensor]


def as_tensors(result: Any) -> List[Tensor]:
    """Returns the tensors of ``result``, a tensor or a sequence of tensors and Nones, as a list without the Nones."""
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


class Contender(NamedTuple):
    """A call to time, with its input data prepared.

    Attributes:
        call: the timed function.
        to_result: converts what ``call`` returns to the tensors that are compared with the expected result; not timed.
        expected: expected result of this contender, if it differs from :attr:`PreparedCase.expected`; else None.
        operations: number of additions and multiplications in one call. None: unknown.
    """

    call: Callable[[], Any]
    to_result: Callable[[Any], Result] = as_tensors
    expected: Optional[Result] = None
    operations: Optional[int] = None


Make = Callable[[], Contender]


class PreparedCase(NamedTuple):
    """The contenders of a case.

    Attributes:
        expected: the expected result, in float64.
        contenders: functions that create the contenders, by name. Each contender is created just before its check.
    """

    expected: Result
    contenders: Dict[str, Make]


class Case(NamedTuple):
    """One computation at one shape.

    Attributes:
        subject: name of the computation, such as "GAE".
        direction: "forward" (without gradients), "forward+backward", or "whole" (an update: advantages, loss, gradients, optimizer step).
        layout: dimensions of the data, such as "[T, N]".
        shape: (environments, steps); :class:`~a2c_compiled.benchmarks.measure.shapes.Plan` lists the exceptions.
        prepare: creates the input data, the expected result and the contenders.
        traffic: bytes that any implementation must move: every input is read once and every output written once. None: unknown.
        tolerance: largest allowed error, see :func:`relative_error`.
    """

    subject: str
    direction: str
    layout: str
    shape: Shape
    prepare: Callable[[], PreparedCase]
    traffic: Optional[int] = None
    tolerance: float = 1e-4


class Row(NamedTuple):
    """The measurement of one contender in one case.

    Attributes:
        subject, direction, layout, shape, traffic: as in :class:`Case`.
        contender: name of the contender.
        first_call: seconds to create the contender and run its first call, including scripting, exporting and compiling; None if one of
            the two raised.
        timing: elapsed seconds per call until the GPU has finished; None if the contender failed or its result was wrong.
        error: error of the result, see :func:`relative_error`; None if the contender failed or its result was wrong.
        device_seconds: GPU time of one call; None if not measured.
        host_seconds: elapsed seconds until the call returned; the GPU may still have been working. None if not measured.
        failure: why there is no timing; None if ``timing`` is set.
        operations: as in :class:`Contender`.
        times_copy: median of ``timing``, divided by the median time of a copy of ``traffic`` bytes; None if one of the two is not measured.
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
    operations: Optional[int] = None
    times_copy: Optional[float] = None

    @property
    def seconds(self) -> float:
        """The median of ``timing``, in seconds; NaN if ``timing`` is None."""
        return self.timing.median if self.timing else float("nan")

    @property
    def bandwidth(self) -> Optional[float]:
        """Bytes per second: ``traffic`` divided by ``device_seconds``, or by ``seconds`` if ``device_seconds`` is None.

        None if ``traffic`` or ``timing`` is None.
        """
        return self.traffic / (self.device_seconds or self.seconds) if self.traffic and self.timing else None


def compare(case: Case, plan: Plan, announce: Callable[[str], object] = lambda name: None) -> List[Row]:
    """Checks the result of every contender, then times the contenders whose result is correct.

    The row of a contender that raises or returns a wrong result has a ``failure`` and no timing.

    Args:
        case: the computation and its contenders.
        plan: device, and number and length of samples.
        announce: called with a description of each next activity, such as the name of the contender.

    Returns:
        One row per contender, in the order of the case.
    """
    with torch.set_grad_enabled(case.direction != "forward"):
        rows = _measure(case, plan, announce)
    if (case.traffic or 0) > _LARGE_TRAFFIC:
        gc.collect()
    copy_seconds = rows[COPY].seconds if COPY in rows else None
    return [
        row._replace(times_copy=row.seconds / copy_seconds) if copy_seconds and row.timing else row for row in rows.values()
    ]


def _measure(case: Case, plan: Plan, announce: Callable[[str], object]) -> Dict[str, Row]:
    """Returns the rows of all contenders by name, without ``times_copy``."""
    prepared = case.prepare()
    rows: Dict[str, Row] = {}
    ready: Dict[str, Callable[[], Any]] = {}
    for name, make in prepared.contenders.items():
        announce(name)
        rows[name], call = _checked(case, name, make, prepared.expected)
        if call is not None:
            ready[name] = call
    timings = time_interleaved(ready, plan.samples, plan.sample_seconds, plan.budget_seconds, announce)
    for name, timing in timings.items():
        rows[name] = rows[name]._replace(timing=timing)
        if plan.device.type == "cuda":
            announce(f"{name}, GPU time")
            device, host = cuda.device_seconds(ready[name], timing.median), cuda.host_seconds(ready[name], timing.median)
            rows[name] = rows[name]._replace(device_seconds=device, host_seconds=host)
    return rows


def _checked(case: Case, name: str, make: Make, expected: Result) -> Tuple[Row, Optional[Callable[[], Any]]]:
    """Creates and checks a contender. Returns its row, and its call if the result is correct."""
    row = Row(case.subject, case.direction, case.layout, case.shape, name, traffic=case.traffic)
    try:
        start = time.perf_counter()
        contender = make()
        result = contender.call()
        synchronize()
        row = row._replace(first_call=time.perf_counter() - start, operations=contender.operations)
        error = relative_error(contender.to_result(result), expected if contender.expected is None else contender.expected)
    except Exception as raised:  # a peer library may raise anything; the other contenders are still measured
        first_line = (str(raised).strip().splitlines() or [""])[0]
        return row._replace(failure=f"{type(raised).__name__}: {first_line}"[:200]), None
    if error > case.tolerance:
        return row._replace(
            failure=f"wrong result: expected a relative error of at most {case.tolerance:.0e}, got {error:.1e}"
        ), None
    return row._replace(error=error), contender.call


def relative_error(result: Result, expected: Result) -> float:
    """Returns the largest error of any tensor, relative to the largest magnitude in its expected tensor.

    The error of a tensor is ``max |actual - expected| / max(max |expected|, 1e-30)``. The result is infinite if a tensor holds NaN, or if
    the number of tensors or a shape differs.
    """
    if len(result) != len(expected):
        return float("inf")
    worst = 0.0
    for actual, reference in zip(result, expected, strict=True):
        if actual.shape != reference.shape:
            return float("inf")
        largest = reference.detach().abs().max().double().clamp_min(1e-30)
        difference = actual.detach().to(reference.device).double() - reference.detach().double()
        error = float(difference.abs().max() / largest)
        worst = max(worst, error) if error == error else float("inf")  # error == error is False for NaN
    return worst


def copy_contender(traffic: int, device: torch.device) -> Make:
    """Returns a function that creates the contender that copies ``traffic / 2`` bytes to memory allocated beforehand.

    The copy moves ``traffic`` bytes: it reads one half and writes the other half.
    """

    def make() -> Contender:
        source, target = torch.empty(2, max(1, traffic // 8), device=device).fill_(1.0)  # float32, 4 bytes each
        return Contender(lambda: target.copy_(source), lambda _: [target], [source])

    return make
