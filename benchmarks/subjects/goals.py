"""The goals for the speed of this library, each beside what a run measured."""

from typing import Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from a2c_compiled.benchmarks.contenders.modes import COMPILED, EAGER
from a2c_compiled.benchmarks.measure.harness import PRODUCTS, Row
from a2c_compiled.benchmarks.measure.shapes import Shape
from a2c_compiled.benchmarks.report.tables import Table, number
from a2c_compiled.benchmarks.subjects.bench_startup import EMPTY, IMPORTS, SAVED, WARM

_Key = Tuple[str, str, Shape, str]  # subject, layout, shape, contender


class Goal(NamedTuple):
    """A goal.

    Attributes:
        text: what is measured, with its unit.
        limit: the goal itself.
        measured: computes the value from the median seconds of a call. Raises KeyError if the run did not measure it.
        at_most: whether the value must be at most ``limit``; else at least.
        threads: the number of torch threads for which the goal is set; None: any.
    """

    text: str
    limit: float
    measured: Callable[[Mapping[_Key, float]], float]
    at_most: bool = True
    threads: Optional[int] = None


def _update(shape: Shape, contender: str) -> _Key:
    return "A2C update", "[T, N]", shape, contender


def _ratio(numerator: _Key, denominator: _Key) -> Callable[[Mapping[_Key, float]], float]:
    return lambda seconds: seconds[numerator] / seconds[denominator]


def _after_imports(contender: str) -> Callable[[Mapping[_Key, float]], float]:
    first = ("First training step", "[T, N]", (8, 5))
    return lambda seconds: seconds[(*first, contender)] - seconds[(*first, IMPORTS)]


def _steps_per_second(seconds: Mapping[_Key, float]) -> float:
    shape = (1024, 16)
    return shape[0] * shape[1] / seconds["Training on CartPole-v1", "[T, N]", shape, COMPILED] / 1e6


def _vtrace_over_gae(layout: str) -> Callable[[Mapping[_Key, float]], float]:
    shape = (4096, 128)
    return _ratio(("V-trace", layout, shape, EAGER), ("GAE", layout, shape, EAGER))


def _layouts(estimator: str) -> Callable[[Mapping[_Key, float]], float]:
    shape = (4096, 5)
    return _ratio((estimator, "[N, T]", shape, EAGER), (estimator, "[T, N]", shape, EAGER))


_SB3 = "SB3 A2C.train"
GOALS = (
    Goal("update, 64x128: compiled / products alone", 1.15, _ratio(_update((64, 128), COMPILED), _update((64, 128), PRODUCTS))),
    Goal(
        "update, 256x128: compiled / products alone", 1.3, _ratio(_update((256, 128), COMPILED), _update((256, 128), PRODUCTS))
    ),
    Goal("update, 8x5: compiled, ms", 0.12, lambda seconds: seconds[_update((8, 5), COMPILED)] * 1e3, threads=1),
    *(
        Goal(
            f"update, {shape[0]}x{shape[1]}: {_SB3} / compiled",
            limit,
            _ratio(_update(shape, _SB3), _update(shape, COMPILED)),
            False,
        )
        for shape, limit in (((8, 5), 6.0), ((64, 128), 4.0), ((256, 128), 3.0))
    ),
    Goal("first training step after imports, empty cache, s", 10.0, _after_imports(EMPTY)),
    Goal("first training step after imports, code on disk, s", 2.5, _after_imports(WARM)),
    Goal("first training step after imports, load_compiled, s", 2.5, _after_imports(SAVED)),
    Goal("V-trace / GAE, 4096x128, [T, N]", 1.8, _vtrace_over_gae("[T, N]")),
    Goal("V-trace / GAE, 4096x128, [N, T]", 2.0, _vtrace_over_gae("[N, T]")),
    *(
        Goal(f"{estimator}, 4096x5: [N, T] / [T, N]", 2.0, _layouts(estimator))
        for estimator in ("GAE", "TD(lambda)", "V-trace", "reward-to-go")
    ),
    Goal("training, 1,024 environments x 16 steps, million steps/s", 1.2, _steps_per_second, False, threads=1),
    Goal("training, 1,024 environments x 16 steps, million steps/s", 1.8, _steps_per_second, False, threads=2),
)


def table(rows: Sequence[Row], threads: int) -> Optional[Table]:
    """Returns the table of the goals that the run measured; None if there is no such goal.

    Args:
        rows: the measurements.
        threads: number of torch threads of the run.
    """
    seconds = {
        (row.subject, row.layout, row.shape, row.contender): row.seconds
        for row in rows
        if row.timing and row.direction in ("forward", "whole")
    }
    lines: List[List[str]] = []
    for goal in GOALS:
        if goal.threads not in (None, threads):
            continue
        try:
            value = goal.measured(seconds)
        except KeyError:
            continue
        met = value <= goal.limit if goal.at_most else value >= goal.limit
        limit = f"at {'most' if goal.at_most else 'least'} {goal.limit:g}"
        lines.append([goal.text, number(value), limit, "yes" if met else "no"])
    return Table("Goals", ["median of this run", "measured", "goal", "met"], lines, []) if lines else None
