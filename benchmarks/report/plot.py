"""Draws the figures: time per call against steps and environments, and achieved bandwidth against bytes to move."""

from pathlib import Path
from typing import Any, Dict, List, Sequence

from a2c_compiled._extras import needs
from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.measure.harness import COPY, OURS, Row
from a2c_compiled.benchmarks.measure.results import Results
from a2c_compiled.benchmarks.measure.shapes import Shape

with needs(__name__, "train", "export"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart. A contender (implementation) has the same colour in every figure.
_COLOURS = {
    f"{OURS} eager": "#0072B2",
    f"{OURS} compiled": "#D55E00",
    f"{OURS} CUDA graph": "#009E73",
    f"{OURS} TorchScript": "#56B4E9",
    f"{OURS} onnxruntime": "#CC79A7",
    "numba, arrays": "#009E73",
    "numba, tensors": "#44AA99",
    "associative_scan compiled": "#CC79A7",
    "rl-triton": "#E69F00",
    "PufferLib": "#56B4E9",
    "torchrl loop": "#E69F00",
    "torchrl vectorised": "#8C6D00",
    "torchrl vec. compiled": "#B8A45A",
    "SB3 RolloutBuffer": "#555555",
    COPY: "#000000",
}
_MARKERS = dict(zip(_COLOURS, "os*v^DdPXhv^<>.", strict=True))
_RC_PARAMS: Any = {"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8.5, "svg.fonttype": "none"}


CAPTIONS = {
    "scaling.png": "GAE, forward: median time of one call against the number of steps and of environments. Bands: 20th to 80th percentile.",
    "bandwidth.png": "GAE, forward: bandwidth against the bytes that must be moved. Data in a cache is copied faster than a large buffer.",
}


def draw(results: Results, out: Path) -> Dict[str, str]:
    """Writes the figures to ``out`` as PNG and SVG. A figure without data is left out.

    Returns:
        The captions of the figures by the names of their PNG files.
    """
    gae = [row for row in results.rows if (row.subject, row.direction) == ("GAE", "forward") and row.timing]
    time_major = [row for row in gae if row.layout == "[T, N]"]
    sweeps = {name: [tuple(shape) for shape in results.plan[name]] for name in ("over_steps", "over_envs")}
    figures: Dict[str, Figure] = {}
    with matplotlib.rc_context(_RC_PARAMS):
        if all(any(row.shape in shapes for row in time_major) for shapes in sweeps.values()):
            figures["scaling.png"] = _scaling(time_major, sweeps, _machine_name(results))
        if time_major:
            figures["bandwidth.png"] = _bandwidth(time_major, results)
        for name, figure in figures.items():
            _save(figure, out / name)
    return {name: CAPTIONS[name] for name in figures}


def _machine_name(results: Results) -> str:
    """Returns the name of the GPU, or the processor and its number of threads."""
    machine = results.machine
    return machine.get("gpu") or f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"


def _scaling(rows: Sequence[Row], sweeps: Dict[str, List[Shape]], machine_name: str) -> Figure:
    """Draws time per call against steps (left) and environments (right) on logarithmic axes. Bands: 20th to 80th percentile."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(f"GAE, forward, [T, N] float32 — {machine_name}", fontsize=10.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, (name, shapes) in zip((left, right), sweeps.items(), strict=True):
        over_steps = name == "over_steps"
        fixed_dim, varied_dim = (0, 1) if over_steps else (1, 0)  # indices in (environments, steps)
        fixed = shapes[0][fixed_dim]
        chosen = [row for row in rows if row.shape[fixed_dim] == fixed]
        for contender in _ordered(chosen):
            line = sorted((row for row in chosen if row.contender == contender), key=lambda row: row.shape)
            if len(line) < 2:
                continue
            x = [row.shape[varied_dim] for row in line]
            axis.plot(x, [row.seconds for row in line], **_style(contender))
            low, high = ([getattr(row.timing, end) for row in line] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=_COLOURS[contender], alpha=0.15, linewidth=0)
        axis.set_xlabel("number of steps T" if over_steps else "number of environments N")
        axis.set_title(f"{fixed:,} environments" if over_steps else f"{fixed:,} steps", loc="left")
        _log_log(axis)
        _tick(axis, [shape[varied_dim] for shape in shapes])
    left.set_ylabel("median time of one call")
    left.yaxis.set_major_formatter(_seconds)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _bandwidth(rows: Sequence[Row], results: Results) -> Figure:
    """Draws the achieved bandwidth, the bytes that must be moved divided by the time, against these bytes.

    If the results have a sweep over environments, the figure has only the shapes of the sweep: at a fixed number of steps, the bytes
    determine the shape.
    """
    swept = [tuple(shape) for shape in results.plan["over_envs"]]
    rows = [row for row in rows if row.shape in swept] or rows
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axis = figure.subplots()
    time_source = "from GPU time" if any(row.device_seconds for row in rows) else "from the time of one call"
    steps = f", {swept[0][1]:,} steps" if swept else ""
    axis.set_title(f"GAE, forward, [T, N] float32{steps}; {time_source}\n{_machine_name(results)}", loc="left")
    copy = results.copy_bandwidth / 1e9
    axis.axhline(copy, color="black", linewidth=1, linestyle=":", label=f"copy of a large buffer, {copy:,.0f} GB/s")
    for contender in _ordered(rows):
        chosen = sorted((row for row in rows if row.contender == contender), key=lambda row: row.traffic or 0)
        if len(chosen) > 1:
            axis.plot(
                [row.traffic or 0 for row in chosen], [(row.bandwidth or 0.0) / 1e9 for row in chosen], **_style(contender)
            )
    _log_log(axis)
    axis.set_xlabel("bytes that must be moved (22 per step and environment)")
    axis.set_ylabel("achieved bandwidth, GB/s")
    axis.xaxis.set_major_formatter(_bytes)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _ordered(rows: Sequence[Row]) -> List[str]:
    """Returns the contenders of ``rows`` that have a colour, in the order of the colours."""
    return [name for name in _COLOURS if any(row.contender == name for row in rows)]


def _style(contender: str) -> Dict[str, Any]:
    """Returns the style of a line: solid with filled markers for this package, dashed with open markers for the other contenders."""
    ours = contender.startswith(OURS)
    return {
        "label": "copy of the same number of bytes" if contender == COPY else contender,
        "color": _COLOURS[contender],
        "linestyle": "-" if ours else "--",
        "linewidth": 1.6 if ours else 1.1,
        "marker": "" if contender == COPY else _MARKERS[contender],
        "markersize": 5,
        "markerfacecolor": _COLOURS[contender] if ours else "white",
    }


def _log_log(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(which="major", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _tick(axis: Axes, sizes: Sequence[int]) -> None:
    """Sets a tick at each measured size, labelled without an exponent."""
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)


def _seconds(value: float, _: object) -> str:
    """Formats a tick of an axis in seconds. A value just below a unit, through rounding, is still printed in this unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value / 1e-9:g} ns"


def _bytes(value: float, _: object) -> str:
    """Formats a tick of an axis in bytes. Rounding: as in :func:`_seconds`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _save(figure: Figure, path: Path) -> None:
    """Writes a figure as SVG and as PNG."""
    for suffix in (".svg", ".png"):
        with atomic_file(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=160)
