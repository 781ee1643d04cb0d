"""Results as tables: one for each question, a line for each contender, a column for each shape."""

import math
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from a2c_compiled.benchmarks.measure.harness import COPY, OURS, Row
from a2c_compiled.benchmarks.measure.machine import in_words
from a2c_compiled.benchmarks.measure.results import Results
from a2c_compiled.benchmarks.measure.shapes import Shape

COLUMNS = 5  # of shapes in a table at most, which then fits 120 characters

HOW_TO_READ = f"""\
- Every answer was held against the same computation in float64 before anything was timed; what answers otherwise is not timed.
- Times are medians; ± is half the distance from the lowest to the highest fifth of the samples. Contenders of a table took turns, so
  that they shared whatever else the machine was doing. **Bold** is the fastest, the copy aside.
- Data lies ready in the form that each contender wants. Compiling, scripting and exporting are in "first call" alone.
- `{COPY}` is one torch copy of as many bytes as the computation cannot but move, into ready memory: the time that no kernel beats by much.
- On a GPU, "on the device alone" adds up what its kernels took, and "until the call returns" is what the host was held up for.
- `TorchScript` and `onnxruntime` are the exported graphs, without an operator of this library: they loop over the steps.
- `SB3 A2C.train` finds the values of the rollout in its buffer, where its collector has left them; the others compute them in the update.
- Kernel times say nothing about training times: see the whole update for those."""


class Table(NamedTuple):
    """Cells of text; ``best`` are those of the fastest, by (line, column)."""

    title: str
    header: List[str]
    lines: List[List[str]]
    best: Sequence[Tuple[int, int]]

    def plain(self) -> str:
        """Aligned, for the terminal."""
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
        """With the fastest in bold."""
        lines = [list(line) for line in self.lines]
        for line, column in self.best:
            lines[line][column] = f"**{lines[line][column]}**"
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join(
            [f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in (self.header, rule, *lines)), ""]
        )


def tables(rows: Sequence[Row], shapes: Optional[Sequence[Shape]] = None) -> Iterator[Table]:
    """Tables of the full call and, where it was measured, of the time on the device; of ``shapes`` alone if given."""
    questions: Dict[Tuple[str, str, str], List[Row]] = {}
    for row in rows:
        if shapes is None or row.shape in shapes:
            questions.setdefault((row.subject, row.direction, row.layout), []).append(row)
    for (subject, direction, layout), group in questions.items():
        found = list(dict.fromkeys(row.shape for row in group))
        size = math.ceil(len(found) / math.ceil(len(found) / COLUMNS))
        title = f"{subject}, {direction}, {layout}"
        for part in (found[start : start + size] for start in range(0, len(found), size)):
            yield _table(title, group, part, lambda row: row.seconds, spread=True)
            if any(row.device_seconds for row in group):
                yield _table(f"{title}: on the device alone", group, part, lambda row: row.device_seconds)
                yield _table(f"{title}: until the call returns", group, part, lambda row: row.host_seconds)


def _table(
    title: str,
    rows: List[Row],
    shapes: Sequence[Shape],
    measured: Callable[[Row], Optional[float]],
    spread: bool = False,
) -> Table:
    def seconds(row: Row) -> float:
        return math.nan if row.timing is None else measured(row) or math.nan

    at = {(row.contender, row.shape): row for row in rows}
    names = [name for name in dict.fromkeys(row.contender for row in rows) if any((name, shape) in at for shape in shapes)]
    timed = [value for row in rows if row.shape in shapes and not math.isnan(value := seconds(row))]
    unit, scale = ("ms", 1e3) if timed and min(timed) > 1e-3 else ("us", 1e6)

    def cell(row: Optional[Row]) -> str:
        if row is None:
            return ""
        if row.timing is None or math.isnan(seconds(row)):
            return "-"
        fifths = f" ±{50 * (row.timing.high - row.timing.low) / row.timing.median:.0f}%" if spread else ""
        return number(seconds(row) * scale) + fifths

    lines = [[name, *(cell(at.get((name, shape))) for shape in shapes)] for name in names]
    best: List[Tuple[int, int]] = []
    summary: List[List[str]] = [["speed-up over fastest peer"], ["fastest here / copy"], ["fastest here, GB/s"]]
    for column, shape in enumerate(shapes, start=1):
        times = {name: seconds(at[name, shape]) for name in names if (name, shape) in at}
        times = {name: value for name, value in times.items() if not math.isnan(value)}
        copy = times.pop(COPY, math.nan)
        if times:
            best.append((names.index(min(times, key=times.__getitem__)), column))
        ours = min((value for name, value in times.items() if name.startswith(OURS)), default=math.nan)
        peers = min((value for name, value in times.items() if not name.startswith(OURS)), default=math.nan)
        traffic = next((row.traffic for row in rows if row.shape == shape), None) or math.nan
        for line, ratio in zip(summary, (peers / ours, ours / copy, traffic / ours / 1e9), strict=True):
            line.append("" if math.isnan(ratio) else number(ratio))
    header = [f"{unit}; environments x steps", *(f"{n}x{t}" for n, t in shapes)]
    return Table(title, header, lines + [line for line in summary if any(line[1:])], best)


def number(value: float) -> str:
    """Three digits that count, and no exponent."""
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def markdown(results: Results, pictures: Mapping[str, str]) -> str:
    """The report: head, tables, pictures by name with their captions, first calls, what was not timed."""
    shapes = [tuple(shape) for name in ("estimators", "others", "updates", "policies") for shape in results.plan[name]]
    parts = [
        "# Benchmarks",
        "",
        in_words(results.machine, results.versions),
        f"Copying a large buffer reads and writes {results.copy_bandwidth / 1e9:.0f} GB/s. The run took {results.seconds:.0f} s.",
        "",
        HOW_TO_READ,
        "",
    ]
    subjects = dict.fromkeys(row.subject for row in results.rows)
    for subject in subjects:
        parts += [f"## {subject}", ""]
        parts += [table.markdown() for table in tables([row for row in results.rows if row.subject == subject], shapes)]
    parts += [part for name, caption in pictures.items() for part in (f"![{caption}]({name})", "", caption, "")]
    parts += ["## First calls", "", *_first_calls(results.rows), "", "## Not timed", "", *_failures(results.rows), ""]
    return "\n".join(parts)


def _first_calls(rows: Sequence[Row]) -> List[str]:
    """The slowest first call of each contender in each question: compiling is in there."""
    slowest: Dict[Tuple[str, str, str], float] = {}
    for row in rows:
        key = (row.subject, row.direction, row.contender)
        if row.timing and row.first_call is not None:
            slowest[key] = max(slowest.get(key, 0.0), row.first_call)
    told = {key: seconds for key, seconds in slowest.items() if seconds >= 0.5}
    lines = [f"| {' | '.join(key)} | {seconds:.1f} |" for key, seconds in told.items()]
    return ["Those of half a second or more.", "", "| | | contender | s |", "|---|---|---|---:|", *lines]


def ours_not_timed(rows: Sequence[Row]) -> List[str]:
    """What of this library failed or answered otherwise, a line for each reason."""
    return _reasons([row for row in rows if row.contender.startswith(OURS)])


def _failures(rows: Sequence[Row]) -> List[str]:
    return [f"- {line}" for line in _reasons(rows)] or ["Everything was."]


def _reasons(rows: Sequence[Row]) -> List[str]:
    """Why rows have no timing, with the shapes that each reason holds for."""
    reasons: Dict[Tuple[str, ...], List[str]] = {}
    for row in rows:
        if row.failure:
            key = (row.subject, row.direction, row.layout, row.contender, row.failure.replace("|", "/"))
            reasons.setdefault(key, []).append(f"{row.shape[0]}x{row.shape[1]}")
    return [f"{', '.join(key[:3])}: {key[3]} at {', '.join(shapes)}: {key[4]}" for key, shapes in reasons.items()]
