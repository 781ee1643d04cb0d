"""Pictures of training runs."""

from pathlib import Path
from typing import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from a2c_compiled._files import written_whole

matplotlib.use("Agg")  # files only: a machine that trains need not have a screen

_PANELS = (
    ("return", "return, mean of 100 episodes"),
    ("entropy", "entropy of the policy"),
    ("loss_critic", "critic loss"),
    ("grad_norm", "gradient norm"),
)


def plot_learning_curves(
    runs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str, goal: float | None = None
) -> None:
    """Return, entropy, critic loss and gradient norm over environment steps, a line for each run; ``goal`` is drawn at the return."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2).flat
    for axis, (column, label) in zip(axes, _PANELS, strict=True):
        for name, progress in runs.items():
            axis.plot(np.asarray(progress["steps"]) / 1e3, progress[column], label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.set_xlabel("environment steps, thousands")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if column == "return":
            if goal is not None:
                axis.axhline(goal, color="black", linestyle=":", linewidth=1, label=f"solved: {goal:g}")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False, fontsize=8)
        if column in ("loss_critic", "grad_norm"):
            axis.set_yscale("log")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
