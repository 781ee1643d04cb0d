"""The house of modules: which parts of the package stand on which. Drawn from the listing in CONTRIBUTING.md, which a test checks."""

import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

LISTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
FLOORS = ("application", "training step and loss", "estimators", "operators and kernels", "ground")
FLOOR_OF = {
    **dict.fromkeys(("cli.py", "demo", "benchmarks", "export", "training", "rollouts", "integrations"), 0),
    **dict.fromkeys(("update", "losses"), 1),
    **dict.fromkeys(("estimators", "functional", "networks", "recurrent.py", "shared_trunk.py"), 2),
    **dict.fromkeys(("ops", "kernels"), 3),
    **dict.fromkeys(("distributions", "environments"), 4),
}
COLOURS = ("#fbedc8", "#d6e6f5", "#d9efdb", "#f3dcdc", "#eeeeee")


def rooms() -> list[str]:
    """The folders and modules of ``a2c_compiled/`` in the order of the listing, from top to bottom."""
    listing = LISTING.read_text().split("```")[1].split("\n\n")[0]
    names = re.findall(r"^  ([a-z]\w*(?:\.py)?)/?(?=\s)", listing, re.MULTILINE)
    assert set(names) == set(FLOOR_OF), f"FLOOR_OF: expected the rooms of CONTRIBUTING.md, {names}"
    return names


def figures() -> dict[str, Figure]:
    """One row for each floor; a room imports only from rooms to its right and below."""
    figure = Figure(figsize=(5.8, 4.4))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(0, 5.8), ylim=(0, 4.4))
    axis.axis("off")
    names, top = rooms(), 4.32
    for floor, label in enumerate(FLOORS):
        axis.text(0.1, top, label, ha="left", va="top", fontsize=9, color="#555555")
        top -= 0.14
        here = [name for name in names if FLOOR_OF[name] == floor]
        rows = [here[:4], here[4:]] if len(here) > 5 else [here]
        for row in rows:
            width = 5.6 / len(row)
            for place, name in enumerate(row):
                corner = 0.1 + place * width, top - 0.5
                axis.add_patch(Rectangle(corner, width - 0.06, 0.42, facecolor=COLOURS[floor], edgecolor="#555555"))
                axis.text(0.1 + (place + 0.5) * width - 0.03, top - 0.29, name, ha="center", va="center", fontsize=9)
            top -= 0.48
        top -= 0.12
    return {"modules": figure}
