"""The pictures of the pages. ``draw_all`` writes them as SVG files; ``make docs`` calls it."""

from pathlib import Path

from pictures import data_flow, estimator_weights, module_house, roofline

STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "svg.fonttype": "path",
    "svg.hashsalt": "a2c_compiled",
    "savefig.facecolor": "white",
}


def draw_all(folder: Path) -> None:
    """Writes every picture to ``folder``."""
    import matplotlib

    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for module in (estimator_weights, roofline, data_flow, module_house):
            for name, figure in module.figures().items():
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
