"""Pictures of training runs: learning curves, a band for the seeds of one configuration, and all else that the runs recorded."""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from a2c_compiled._files import written_whole
from a2c_compiled.training.log import COLUMNS, load_progress
from a2c_compiled.training.run_folder import group_runs, names_of

Progress = Mapping[str, Sequence[float]]
"""What a run recorded, by column."""

Line = Tuple[np.ndarray, np.ndarray]
"""Where, and how much: x and y."""

_X_AXES = {"steps": "environment steps", "seconds": "wall time, s"}

_PANELS = {name: column.axis for name, column in COLUMNS.items() if column.axis is not None}
"""Columns, and what the axes call them; the first has the widest panel."""

_POINTS = 400

# Okabe and Ito's colours, which readers of every kind of colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def plot_runs(folders: Sequence[Path], path: Path, x: str = "steps", smooth: int = 1) -> None:
    """Learning curves of runs, finished or running; those that differ in nothing but the seed become one band.

    Args:
        folders: that training wrote.
        path: of the picture.
        x: ``"steps"`` or ``"seconds"``.
        smooth: rows that each point is the mean of.

    Raises:
        ValueError: a folder holds no run, or none of the runs has recorded anything yet.
    """
    groups = group_runs(folders)
    runs = {
        name if len(group.folders) == 1 else f"{name} ({len(group.folders)} seeds)": [load_progress(f) for f in group.folders]
        for name, group in zip(names_of(groups), groups, strict=True)
    }
    envs, goals = {group.config.get("env") for group in groups} - {None}, {group.goal for group in groups} - {None}
    title = f"A2C on {', '.join(sorted(map(str, envs)))}" if envs else "A2C"
    plot_learning_curves(runs, path, title, goals.pop() if len(goals) == 1 else None, x, smooth)


def plot_learning_curves(
    runs: Mapping[str, Union[Progress, Sequence[Progress]]],
    path: Path,
    title: str,
    goal: Optional[float] = None,
    x: str = "steps",
    smooth: int = 1,
) -> None:
    """The return, and below it all else that was recorded, over environment steps or wall time.

    A run is a line. Several under one name are the line of their mean in a band from the lowest to the highest (of five or more: from the
    lower to the upper quartile), as far as the shortest goes; from there the longer ones are a thin line each.

    Args:
        runs: by the name that the legend gives them.
        path: of the picture.
        title: above it.
        goal: drawn at the return.
        x: ``"steps"`` or ``"seconds"``.
        smooth: rows that each point is the mean of.

    Raises:
        ValueError: nothing was recorded, or an option is none of these.
    """
    if x not in _X_AXES:
        raise ValueError(f"x: expected 'steps' or 'seconds', got {x!r}")
    if smooth < 1:
        raise ValueError(f"smooth: expected at least 1, got {smooth}")
    seeds = {name: [given] if isinstance(given, Mapping) else list(given) for name, given in runs.items()}
    lines = {column: {name: _lines(group, x, column, smooth) for name, group in seeds.items()} for column in _PANELS}
    panels = [column for column in _PANELS if any(lines[column].values())]
    if not panels:
        raise ValueError("run: expected runs that have recorded something, found no numbers yet")
    figure = Figure(figsize=(11, 3.2 + 2.4 * -(-(len(panels) - 1) // 3)), layout="constrained")
    figure.suptitle(title if smooth == 1 else f"{title}, means of {smooth} rows")
    legend: Dict[str, Any] = {}
    axes = _axes(figure, len(panels))
    for axis in {axes[0], *axes[-3:]}:  # the lowest of each column name what they share
        axis.set_xlabel(_X_AXES[x])
    for column, axis in zip(panels, axes, strict=True):
        for i, name in enumerate(seeds):
            _draw(axis, lines[column][name], name, _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)])
        if column == "return" and goal is not None:
            axis.axhline(goal, color="0.35", linestyle=(0, (5, 3)), linewidth=1, label=f"solved: {goal:g}")
        _finish(axis, column, x)
        handles, labels = axis.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    columns = max(1, min(len(legend), 120 // (8 + max(map(len, legend)))))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns, frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_returns(folders: Sequence[Path], path: Path) -> None:
    """The return of runs over environment steps, a panel for each configuration: its seeds as in :func:`plot_runs`, its goal dashed.

    Raises:
        ValueError: there is no run, or a folder holds none.
    """
    groups = group_runs(folders)
    if not groups:
        raise ValueError("folders: expected runs, got none")
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for i, group in enumerate(groups):
        axis, env, goal = figure.add_subplot(rows, columns, i + 1), str(group.config.get("env", "A2C")), group.goal
        _draw(axis, _lines([load_progress(folder) for folder in group.folders], "steps", "return", 1), env, _COLOURS[0], "-")
        if goal is not None:
            axis.axhline(goal, color="0.35", linestyle=(0, (5, 3)), linewidth=1)
        axis.set_title(env, fontsize=10)
        axis.set_xlabel(_X_AXES["steps"])
        _finish(axis, "return", "steps")
        axis.set_ylabel("return")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _lines(group: Sequence[Progress], x: str, column: str, smooth: int) -> List[Line]:
    """A column of each run in which it holds numbers."""
    lines = []
    for progress in group:
        at, values = (np.asarray(progress.get(name, ()), dtype=np.float64) for name in (x, column))
        if len(at) == len(values):
            known = np.isfinite(at) & np.isfinite(values)
            if known.any():
                lines.append((at[known], _smoothed(values[known], smooth)))
    return lines


def _smoothed(values: np.ndarray, count: int) -> np.ndarray:
    """Means of ``count`` values around each, of fewer at the ends."""
    window = np.ones(min(count, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _draw(axis: Axes, lines: Sequence[Line], name: str, colour: str, dashes: str) -> None:
    if not lines:
        return
    start, end = max(at[0] for at, _ in lines), min(at[-1] for at, _ in lines)
    if len(lines) == 1 or start >= end:
        for at, values in lines:
            axis.plot(at, values, dashes, marker="o" if len(at) == 1 else None, color=colour, linewidth=1.3, label=name)
        return
    common = np.unique(np.concatenate([at for at, _ in lines]))
    common = common[(start <= common) & (common <= end)] if len(common) <= _POINTS else np.linspace(start, end, _POINTS)
    values = np.stack([np.interp(common, *line) for line in lines])
    low, high = np.quantile(values, (0.25, 0.75) if len(lines) >= 5 else (0.0, 1.0), axis=0)
    axis.fill_between(common, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(common, values.mean(0), dashes, color=colour, linewidth=1.6, label=name)
    for at, tail in lines:
        axis.plot(at[at >= end], tail[at >= end], dashes, color=colour, linewidth=0.7, alpha=0.6)


def _axes(figure: Figure, panels: int) -> List[Axes]:
    """One as wide as the figure, the others below it, three in a row."""
    rows = -(-(panels - 1) // 3)
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=[1.3] + [1.0] * rows)
    return [figure.add_subplot(grid[0, :])] + [figure.add_subplot(grid[1 + i // 3, i % 3]) for i in range(panels - 1)]


def _finish(axis: Axes, column: str, x: str) -> None:
    axis.set_ylabel(_PANELS[column])
    axis.set_xlim(left=0)
    if x == "steps":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if COLUMNS[column].logarithmic and any(np.max(line.get_ydata(), initial=0.0) > 0 for line in axis.lines):
        axis.set_yscale("log", nonpositive="mask")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1e3 * low else (1.0,)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    if column == "explained_variance" and low < -1.0 < high:
        axis.set_ylim(bottom=-1.0)  # a critic that knows nothing yet is anywhere below
    if column == "steps_per_second":
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylim(bottom=0)
