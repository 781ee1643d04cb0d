"""How close the estimators come to the speed of memory, from the stored results of ``a2c-compiled bench``."""

import json
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "amd_epyc" / "results.json"
LINES = {
    "copy": ("copy of as many bytes", "black", "--"),
    "a2c_compiled eager": ("a2c_compiled, eager", "#0072B2", "o-"),
    "a2c_compiled onnxruntime": ("a2c_compiled, onnxruntime", "#CC79A7", "s-"),
    "numba, tensors": ("numba loop", "#44AA99", "^-"),
    "torchrl loop": ("TorchRL, loop", "#E69F00", "v-"),
    "SB3 RolloutBuffer": ("Stable-Baselines3", "#555555", "D-"),
}


def figures() -> dict[str, Figure]:
    """Bandwidth of GAE against the bytes that it must move. The copy of as many bytes is the roof."""
    results = json.loads(RESULTS.read_text())
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, (label, colour, style) in LINES.items():
        points = sorted(
            {
                (row["traffic"], row["bandwidth"] / 1e9)
                for row in results["rows"]
                if (row["subject"], row["direction"], row["layout"], row["contender"]) == ("GAE", "forward", "[T, N]", name)
                and row["bandwidth"]
                and row["shape"][1] == 128
            }
        )
        axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
    axis.set(xscale="log", yscale="log", xlabel="bytes read and written", ylabel="GB/s")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    return {"roofline": figure}
