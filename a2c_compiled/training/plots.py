"""Pictures of training runs."""

from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from a2c_compiled._files import written_whole

_PANELS = (
    ("return", "return while exploring, mean of 100 episodes"),
    ("entropy", "entropy of the policy"),
    ("loss_critic", "critic loss"),
    ("grad_norm", "gradient norm"),
)


def plot_learning_curves(
    runs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str, goal: float | None = None
) -> None:
    """Return, entropy, critic loss and gradient norm over environment steps, a line for each run; ``goal`` is drawn at the return.

    What a run has not recorded, because its loss switches it off, is left empty.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2).flat
    for axis, (column, label) in zip(axes, _PANELS, strict=True):
        recorded = {name: progress for name, progress in runs.items() if column in progress}
        for name, progress in recorded.items():
            axis.plot(np.asarray(progress["steps"]) / 1e3, progress[column], label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.set_xlabel("environment steps, thousands")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if column == "return":
            if goal is not None:
                axis.axhline(goal, color="black", linestyle=":", linewidth=1, label=f"solved by the greedy policy: {goal:g}")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False, fontsize=8)
        if column in ("loss_critic", "grad_norm") and any(max(progress[column]) > 0 for progress in recorded.values()):
            axis.set_yscale("log")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
