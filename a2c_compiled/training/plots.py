"""Plots of training runs: learning curves with one band for the seeds of a configuration, and the other logged columns."""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled.training.log import COLUMNS, load_progress
from a2c_compiled.training.run_folder import group_runs, names_of

Progress = Mapping[str, Sequence[float]]
"""Logged values of a run by column, as :func:`~a2c_compiled.training.log.load_progress` returns them."""

Line = Tuple[np.ndarray, np.ndarray]
"""x values and y values of a line. Both: ``[rows]``, float64."""

_X_AXES = {"steps": "environment steps", "seconds": "wall time, s"}

_PANELS = {name: column.axis for name, column in COLUMNS.items() if column.axis is not None}
"""Label of the y axis by column. The first column has the widest panel."""

_MAX_POINTS = 400
"""Largest number of points of a band. If the runs have more distinct x values, the band has equidistant points."""

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_EXPLAINED = "0.4"
"""Colour of the legend's entries that explain marks of every colour."""

_GREEDY = ("greedy_return", "greedy_return_std")


def plot_runs(folders: Sequence[AnyPath], path: AnyPath, x: str = "steps", smooth: int = 1) -> None:
    """Plots learning curves of runs that are finished or still running. Runs that differ only in the seed become one band.

    Args:
        folders: folders of the runs.
        path: file of the picture.
        x: the x axis: ``"steps"`` or ``"seconds"``.
        smooth: number of rows that are averaged for each point.

    Raises:
        ValueError: a folder has no run, no run has logged a row yet, or ``x``, ``smooth`` or the ending of ``path`` is not valid.
        TypeError: a folder or ``path`` is not a path.
    """
    groups = group_runs(folders)
    runs: Dict[str, Sequence[Progress]] = {}
    for name, group in zip(names_of(groups), groups, strict=True):
        label = name if len(group.folders) == 1 else f"{name} ({len(group.folders)} seeds)"
        runs[label] = [load_progress(folder) for folder in group.folders]
    envs = {group.config.get("env") for group in groups} - {None}
    goals = {group.goal for group in groups} - {None}
    title = f"A2C on {', '.join(sorted(map(str, envs)))}" if envs else "A2C"
    plot_learning_curves(runs, path, title, goals.pop() if len(goals) == 1 else None, x, smooth)


def plot_learning_curves(
    runs: Mapping[str, Union[Progress, Sequence[Progress]]],
    path: AnyPath,
    title: str,
    goal: Optional[float] = None,
    x: str = "steps",
    smooth: int = 1,
) -> None:
    """Plots the return, and below it the other logged columns, over environment steps or wall time.

    One run is a line. Several runs under one name are a band with a line, their mean. The band goes from their minimum to their maximum;
    with five or more runs, from the lower to the upper quartile. Band and mean cover the range of x that all runs have. After the end of
    the shortest run, each longer run is a thin line. Runs without a common range are separate lines. The legend explains bands and thin
    lines.

    The curve shows the returns of sampled actions. A diamond with an error bar is the last evaluation of a run's greedy policy: mean and
    standard deviation of its returns.

    Args:
        runs: logged columns of one or several runs, by name in the legend.
        path: file of the picture.
        title: text above the plots.
        goal: return at which the plot has a dashed line; None: no line.
        x: the x axis: ``"steps"`` or ``"seconds"``.
        smooth: number of rows that are averaged for each point.

    Raises:
        ValueError: nothing was logged, or ``x``, ``smooth`` or the ending of ``path`` is not valid.
        TypeError: a folder or ``path`` is not a path.
    """
    if x not in _X_AXES:
        raise ValueError(f"x: expected 'steps' or 'seconds', got {x!r}")
    if smooth < 1:
        raise ValueError(f"smooth: expected at least 1, got {smooth}")
    path = _checked(path)
    seeds = {name: [group] if isinstance(group, Mapping) else list(group) for name, group in runs.items()}
    lines = {column: {name: _lines(group, x, column, smooth) for name, group in seeds.items()} for column in _PANELS}
    panels = [column for column in _PANELS if any(lines[column].values())]
    if not panels:
        raise ValueError("run: expected at least one run with a logged row, found none yet")
    rows_below = -(-(len(panels) - 1) // 3)  # rounded up
    figure = Figure(figsize=(11, 3.2 + 2.4 * rows_below), layout="constrained")
    figure.suptitle(title if smooth == 1 else f"{title}, means of {smooth} rows")
    legend: Dict[str, Any] = {}
    explained: Dict[str, Any] = {}  # entries of the legend that explain marks, after the names
    axes = _axes(figure, len(panels))
    for axis in {axes[0], *axes[-3:]}:  # only the lowest panels have a label on the x axis
        axis.set_xlabel(_X_AXES[x])
    for column, axis in zip(panels, axes, strict=True):
        for i, (name, group) in enumerate(seeds.items()):
            colour = _COLOURS[i % len(_COLOURS)]
            explained |= _draw(axis, lines[column][name], name, colour, _DASHES[i // len(_COLOURS) % len(_DASHES)])
            if column == "return":
                explained |= _mark_greedy_returns(axis, group, x, colour)
        if column == "return" and goal is not None:
            axis.axhline(goal, color="0.35", linestyle=(0, (5, 3)), linewidth=1, label=f"solved: {goal:g}")
        _finish(axis, column, x)
        handles, labels = axis.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    legend |= explained
    # In the legend, about 120 characters fit in a row; an entry takes its label and about eight characters for its line.
    columns = max(1, min(len(legend), 120 // (8 + max(map(len, legend)))))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_returns(folders: Sequence[AnyPath], path: AnyPath) -> None:
    """Plots the return of runs over environment steps, with one panel for each configuration.

    Runs that differ only in the seed become one band, and the greedy policy's return is marked, as in :func:`plot_learning_curves`. A
    dashed line marks the return at which the environment counts as solved.

    Args:
        folders: folders of the runs.
        path: file of the picture.

    Raises:
        ValueError: ``folders`` is empty, a folder has no run, or ``path`` has an ending that matplotlib does not know.
        TypeError: a folder or ``path`` is not a path.
    """
    path = _checked(path)
    groups = group_runs(folders)
    if not groups:
        raise ValueError("folders: expected at least one run, got none")
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)  # rounded up
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    explained: Dict[str, Any] = {}
    for i, group in enumerate(groups):
        axis, env, goal = figure.add_subplot(rows, columns, i + 1), str(group.config.get("env", "A2C")), group.goal
        runs = [load_progress(folder) for folder in group.folders]
        explained |= _draw(axis, _lines(runs, "steps", "return", 1), env, _COLOURS[0], "-")
        explained |= _mark_greedy_returns(axis, runs, "steps", _COLOURS[0])
        if goal is not None:
            axis.axhline(goal, color="0.35", linestyle=(0, (5, 3)), linewidth=1)
        axis.set_title(env, fontsize=10)
        axis.set_xlabel(_X_AXES["steps"])
        _finish(axis, "return", "steps")
        axis.set_ylabel("return")
    figure.legend(explained.values(), explained.keys(), loc="outside lower center", ncols=columns, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _checked(path: AnyPath) -> Path:
    """Returns ``path`` as a Path. Raises ValueError if matplotlib writes no files with its ending."""
    path = as_path("path", path)
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"path: expected a file ending in .png, .svg or .pdf, got {path}")
    return path


def _lines(group: Sequence[Progress], x: str, column: str, smooth: int) -> List[Line]:
    """Returns one line for each run that has finite values in ``column``."""
    lines = []
    for progress in group:
        positions, values = (np.asarray(progress.get(name, ()), dtype=np.float64) for name in (x, column))
        if len(positions) == len(values):  # the lengths differ if the run lacks one of the columns
            finite = np.isfinite(positions) & np.isfinite(values)
            if finite.any():
                lines.append((positions[finite], _smoothed(values[finite], smooth)))
    return lines


def _smoothed(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the centred moving average over ``count`` values, or over fewer values near both ends: ``[rows]``, float64."""
    window = np.ones(min(count, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _draw(axis: Axes, lines: Sequence[Line], name: str, colour: str, dashes: str) -> Dict[str, Any]:
    """Draws the runs of one name, as described in :func:`plot_learning_curves`.

    Returns entries of the legend, by text, that explain what is drawn beside the line of ``name``.
    """
    if not lines:
        return {}
    start, end = max(xs[0] for xs, _ in lines), min(xs[-1] for xs, _ in lines)
    if len(lines) == 1 or start >= end:
        for xs, ys in lines:
            axis.plot(xs, ys, dashes, marker="o" if len(xs) == 1 else None, color=colour, linewidth=1.3, label=name)
        return {}
    common = np.unique(np.concatenate([xs for xs, _ in lines]))
    common = common[(start <= common) & (common <= end)] if len(common) <= _MAX_POINTS else np.linspace(start, end, _MAX_POINTS)
    values = np.stack([np.interp(common, *line) for line in lines])
    quantiles, text = ((0.25, 0.75), "mean and quartiles") if len(lines) >= 5 else ((0.0, 1.0), "mean, min and max")
    low, high = np.quantile(values, quantiles, axis=0)
    axis.fill_between(common, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(common, values.mean(0), dashes, color=colour, linewidth=1.6, label=name)
    explained: Dict[str, Any] = {f"{text} of seeds": Patch(color=_EXPLAINED, alpha=0.3, linewidth=0)}
    for xs, ys in lines:
        if xs[-1] > end:
            axis.plot(xs[xs >= end], ys[xs >= end], dashes, color=colour, linewidth=0.7, alpha=0.6)
            explained["seed that ran longer"] = Line2D([], [], color=_EXPLAINED, linewidth=0.7)
    return explained


def _mark_greedy_returns(axis: Axes, group: Sequence[Progress], x: str, colour: str) -> Dict[str, Any]:
    """Marks the last evaluation of each run's greedy policy, and returns the entry of the legend for the marks."""
    mark: Dict[str, Any] = {"fmt": "D", "markersize": 4, "capsize": 3, "elinewidth": 1, "markeredgecolor": "white"}
    explained = {}
    for progress in group:
        for position, mean, std in list(zip(*(progress.get(name, ()) for name in (x, *_GREEDY)), strict=False))[::-1]:
            if np.isfinite(mean):
                axis.errorbar(position, mean, std, color=colour, **mark)
                text = "greedy policy: mean ± std"
                explained = {text: Line2D([], [], color=_EXPLAINED, marker="D", markersize=4, linestyle="none")}
                break
    return explained


def _axes(figure: Figure, panels: int) -> List[Axes]:
    """Creates one panel as wide as the figure, and the others below it, three in a row."""
    rows = -(-(panels - 1) // 3)  # rounded up
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=[1.3] + [1.0] * rows)
    return [figure.add_subplot(grid[0, :])] + [figure.add_subplot(grid[1 + i // 3, i % 3]) for i in range(panels - 1)]


def _finish(axis: Axes, column: str, x: str) -> None:
    """Sets label, limits, scale and ticks of the axes of one panel."""
    axis.set_ylabel(_PANELS[column])
    axis.set_xlim(left=0)
    if x == "steps":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if COLUMNS[column].logarithmic and any(np.max(line.get_ydata(), initial=0.0) > 0 for line in axis.lines):
        axis.set_yscale("log", nonpositive="mask")
        axis.yaxis.set_major_locator(_log_locator(*axis.get_ylim()))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    if column == "explained_variance" and low < -1.0 < high:
        axis.set_ylim(bottom=-1.0)  # an untrained critic may have any explained variance below -1
    if column == "steps_per_second":
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylim(bottom=0)


def _log_locator(low: float, high: float) -> Locator:
    """Returns ticks for a logarithmic axis from ``low`` to ``high``, of which at least two are in this range."""
    # Two ticks are certain if the range is wider than two gaps. The widest gap of (1, 3) is 10 / 3, that of (1, 2, 5) is 2.5.
    for subs, gap in (((1.0,), 10.0**1.5), ((1.0, 3.0), 10 / 3), ((1.0, 2.0, 5.0), 2.5)):
        if high / low > gap**2:
            return LogLocator(subs=subs)
    return MaxNLocator(4)
