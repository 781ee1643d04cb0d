"""Formats results as tables with one line per contender and one column per shape.

A subject, direction and layout has a table of the time per call and, if measured on a GPU, of the GPU time and of the time until the call
returns. More than ``COLUMNS`` shapes are divided among several tables.

Subject, direction, layout, contender: see :mod:`a2c_compiled.benchmarks.measure.harness`.
"""

import math
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from a2c_compiled.benchmarks.measure.harness import BOUNDS, COPY, OURS, PRODUCTS, Row
from a2c_compiled.benchmarks.measure.machine import in_words
from a2c_compiled.benchmarks.measure.results import Results
from a2c_compiled.benchmarks.measure.shapes import Shape

COLUMNS = 5  # the largest number of shapes in one table, so that a table fits into 120 characters

HOW_TO_READ = f"""\
- Names that begin with `{OURS}` are modes of this library. The other names are peer libraries and baselines.
- A column is a shape: environments x steps; for packed sequences, number of sequences x mean length; for the policy, observations x 1.
- Every result was compared with the same computation in float64 before timing. Contenders with a wrong result are not timed.
- Times are medians per call. ± is half the distance from the 20th to the 80th percentile of the samples, in percent of the median.
  The contenders of one case were timed in turn, so that other load on the machine affected all of them. **Bold** is the fastest
  contender, `{COPY}` and `{PRODUCTS}` excluded.
- The input data was prepared in the format that each contender needs, before timing. Only "first call" includes compiling, scripting
  and exporting.
- `{COPY}` copies one buffer to another, both allocated beforehand. In total it reads and writes as many bytes as the computation must at
  least read and write, so its time is close to the shortest possible time of a kernel.
- "speed-up over fastest peer" is the time of the fastest peer divided by the time of the fastest {OURS} mode: above 1, {OURS} is faster.
  "{OURS} / {COPY}" divides the time of the fastest {OURS} mode by the time of the copy. "{OURS}, GB/s" divides the bytes of the copy by the
  time of that mode.
- `{PRODUCTS}` runs the matrix products, convolutions and tanh of the update, each in the faster of ATen and oneDNN, tanh
  also as in a compiled update, and nothing else.
- On a GPU, "GPU time" is the sum over the kernels of one call. "time until the call returns" is the time until Python
  continues; the GPU may still be working then.
- `{OURS} TorchScript` and `{OURS} onnxruntime` are exported graphs without this library's operators: they loop over the steps.
- `SB3 A2C.train` reads the state values of the rollout from its buffer, where its collector stored them. The other contenders compute
  these values in the update.
- The time of an estimator alone does not predict the training time: see the table of the whole update."""


class Table(NamedTuple):
    """A table of text cells.

    Attributes:
        title: text above the table.
        header: one cell per column.
        lines: the cells below the header, one list for each line.
        best: (line, column) of each cell with the fastest time; ``markdown`` prints these cells in bold.
    """

    title: str
    header: List[str]
    lines: List[List[str]]
    best: Sequence[Tuple[int, int]]

    def plain(self) -> str:
        """Returns the table as aligned text for the terminal."""
        cells = [self.header, *self.lines]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.header))]
        text = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        return "\n".join(line.rstrip() for line in (self.title, text[0], "-" * len(text[0]), *text[1:], ""))

    def markdown(self) -> str:
        """Returns the table in Markdown, with the fastest times in bold."""
        lines = [list(line) for line in self.lines]
        for line, column in self.best:
            lines[line][column] = f"**{lines[line][column]}**"
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join(
            [f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in (self.header, rule, *lines)), ""]
        )


def tables(rows: Sequence[Row], shapes: Optional[Sequence[Shape]] = None) -> Iterator[Table]:
    """Yields the tables of the time per call and, where measured, of the GPU time and of the time until the call returns.

    Args:
        rows: the measurements.
        shapes: shapes to include. None: all.
    """
    groups: Dict[Tuple[str, str, str], List[Row]] = {}
    for row in rows:
        if shapes is None or row.shape in shapes:
            groups.setdefault((row.subject, row.direction, row.layout), []).append(row)
    for (subject, direction, layout), group in groups.items():
        measured_shapes = list(dict.fromkeys(row.shape for row in group))
        parts = math.ceil(len(measured_shapes) / COLUMNS)
        size = math.ceil(len(measured_shapes) / parts)  # of each part, so that the parts are about equal
        title = f"{subject}, {direction}, {layout}"
        for part in (measured_shapes[start : start + size] for start in range(0, len(measured_shapes), size)):
            yield _table(title, group, part, lambda row: row.seconds, spread=True)
            if any(row.device_seconds for row in group):
                yield _table(f"{title}: GPU time", group, part, lambda row: row.device_seconds)
                yield _table(f"{title}: time until the call returns", group, part, lambda row: row.host_seconds)


def _table(
    title: str,
    rows: List[Row],
    shapes: Sequence[Shape],
    measured: Callable[[Row], Optional[float]],
    spread: bool = False,
) -> Table:
    """Builds one table.

    ``measured`` returns the time of a row in seconds, or None if it was not measured. ``spread`` says whether cells contain ±.
    """

    def seconds(row: Row) -> float:
        value = None if row.timing is None else measured(row)
        return math.nan if value is None else value

    row_at = {(row.contender, row.shape): row for row in rows}
    names = [name for name in dict.fromkeys(row.contender for row in rows) if any((name, shape) in row_at for shape in shapes)]
    timed = [value for row in rows if row.shape in shapes and not math.isnan(value := seconds(row))]
    unit, scale = ("ms", 1e3) if timed and min(timed) > 1e-3 else ("us", 1e6)

    def cell(row: Optional[Row]) -> str:
        if row is None:
            return ""
        if row.timing is None or math.isnan(seconds(row)):
            return "-"
        percent = 100 * (row.timing.high - row.timing.low) / 2 / row.timing.median
        return number(seconds(row) * scale) + (f" ±{percent:.0f}%" if spread else "")

    lines = [[name, *(cell(row_at.get((name, shape))) for shape in shapes)] for name in names]
    best: List[Tuple[int, int]] = []
    summary = [["speed-up over fastest peer"], *([f"{OURS} / {bound}"] for bound in BOUNDS)]
    summary += [[f"{OURS}, GB/s"], [f"{PRODUCTS}, GFLOP/s"]]
    for column, shape in enumerate(shapes, start=1):
        times = {name: seconds(row_at[name, shape]) for name in names if (name, shape) in row_at}
        times = {name: value for name, value in times.items() if not math.isnan(value)}
        copy, products = (times.pop(bound, math.nan) for bound in BOUNDS)
        if times:
            best.append((names.index(min(times, key=times.__getitem__)), column))
        ours = min((value for name, value in times.items() if name.startswith(OURS)), default=math.nan)
        peers = min((value for name, value in times.items() if not name.startswith(OURS)), default=math.nan)
        traffic = next((row.traffic for row in rows if row.shape == shape and row.traffic), math.nan)
        operations = next((row.operations for row in rows if row.shape == shape and row.operations), math.nan)
        ratios = (peers / ours, ours / copy, ours / products, traffic / ours / 1e9, operations / products / 1e9)
        for line, ratio in zip(summary, ratios, strict=True):
            line.append("" if math.isnan(ratio) else number(ratio))
    header = [f"{unit} per call; environments x steps", *(f"{n}x{t}" for n, t in shapes)]
    return Table(title, header, lines + [line for line in summary if any(line[1:])], best)


def number(value: float) -> str:
    """Formats ``value`` with at least three significant digits and without an exponent."""
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def markdown(results: Results, figures: Mapping[str, str], goals: Optional[Table] = None) -> str:
    """Returns the report in Markdown: machine, goals, tables, figures, first calls, and contenders without a timing.

    Args:
        results: the results of a run.
        figures: the caption of each figure by its file name.
        goals: the table of the goals; None if no goal was measured.
    """
    # The shapes of sweeps are shown in figures, not in tables.
    tabled = ("estimators", "others", "packed", "updates", "images", "policies", "startups", "trainings")
    shapes = [tuple(shape) for name in tabled for shape in results.plan[name]]
    parts = [
        "# Benchmarks",
        "",
        in_words(results.machine, results.versions),
        f"Copying a large buffer reads and writes {results.copy_bandwidth / 1e9:.0f} GB/s. The run took {results.seconds:.0f} s.",
        "",
        HOW_TO_READ,
        "",
        *([] if goals is None else [goals.markdown()]),
    ]
    subjects = dict.fromkeys(row.subject for row in results.rows)
    for subject in subjects:
        parts += [f"## {subject}", ""]
        parts += [table.markdown() for table in tables([row for row in results.rows if row.subject == subject], shapes)]
    parts += [part for name, caption in figures.items() for part in (f"![{caption}]({name})", "", caption, "")]
    parts += ["## First calls", "", *_first_calls(results.rows), "", "## Not timed", "", *_failures(results.rows), ""]
    return "\n".join(parts)


def _first_calls(rows: Sequence[Row]) -> List[str]:
    """Lists the longest first call of each contender, subject and direction, if that call took at least 0.5 s."""
    slowest: Dict[Tuple[str, str, str], float] = {}
    for row in rows:
        key = (row.subject, row.direction, row.contender)
        if row.timing and row.first_call is not None:
            slowest[key] = max(slowest.get(key, 0.0), row.first_call)
    slow = {key: seconds for key, seconds in slowest.items() if seconds >= 0.5}
    lines = [f"| {' | '.join(key)} | {seconds:.1f} |" for key, seconds in slow.items()]
    return [
        "Longest first call over all shapes, if at least 0.5 s. A first call includes compiling, scripting and exporting.",
        "",
        "| subject | direction | contender | first call, s |",
        "|---|---|---|---:|",
        *lines,
    ]


def own_failures(rows: Sequence[Row]) -> List[str]:
    """Returns one line for each failure of this library's contenders: an error or a wrong result."""
    return _reasons([row for row in rows if row.contender.startswith(OURS)])


def _failures(rows: Sequence[Row]) -> List[str]:
    return [f"- {line}" for line in _reasons(rows)] or ["None: every contender was timed."]


def _reasons(rows: Sequence[Row]) -> List[str]:
    """Returns one line for each subject, direction, layout, contender and reason, with the shapes at which it failed."""
    reasons: Dict[Tuple[str, ...], List[str]] = {}
    for row in rows:
        if row.failure:
            key = (row.subject, row.direction, row.layout, row.contender, row.failure.replace("|", "/"))
            reasons.setdefault(key, []).append(f"{row.shape[0]}x{row.shape[1]}")
    return [f"{', '.join(key[:3])}: {key[3]} at {', '.join(shapes)}: {key[4]}" for key, shapes in reasons.items()]
