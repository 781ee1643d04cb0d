"""A diagram of boxes and arrows: the data flow of a training step."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, GREEN, YELLOW = "#d6e6f5", "#d9efdb", "#fbedc8"


class Box(NamedTuple):
    """A box around ``(x, y)``, of ``width`` and ``height``, with lines of text; the first is bold."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: str


def figures() -> dict[str, Figure]:
    """The diagram."""
    return {"training_step": _training_step()}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose coordinates are inches, without axes."""
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def _draw(axis: Axes, box: Box) -> None:
    corner = box.x - box.width / 2, box.y - box.height / 2
    axis.add_patch(
        FancyBboxPatch(
            corner, box.width, box.height, boxstyle="round,pad=0,rounding_size=0.08", facecolor=box.colour, edgecolor="#555555"
        )
    )
    head, _, rest = box.text.partition("\n")
    lines = rest.count("\n") + 1 if rest else 0
    axis.text(box.x, box.y + 0.09 * lines, head, ha="center", va="center", fontweight="bold", fontsize=10)
    if rest:
        axis.text(box.x, box.y - 0.1, rest, ha="center", va="center", fontsize=9, linespacing=1.15)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)


def _training_step() -> Figure:
    figure, axis = _canvas(5.6, 6.2)
    boxes = [
        Box(2.8, 5.75, 5.2, 0.7, "Rollout\nobservation, action, reward, next_observation, done, terminated", GREEN),
        Box(1.5, 4.6, 2.4, 0.8, "actor network\nparams [T, N, P]", BLUE),
        Box(4.2, 4.6, 2.4, 0.8, "critic network\nvalues of both observations", BLUE),
        Box(1.5, 3.4, 2.4, 0.8, "distribution\nlog_prob, entropy", BLUE),
        Box(4.2, 3.4, 2.4, 0.8, "value estimator\nadvantage, value_target", BLUE),
        Box(2.8, 2.25, 5.2, 0.7, "loss\nloss_objective + loss_critic + loss_entropy", BLUE),
        Box(2.8, 1.3, 5.2, 0.6, "gradient, clipped to max_grad_norm", BLUE),
        Box(2.8, 0.4, 5.2, 0.6, "optimizer: new parameters, new state, metrics", YELLOW),
    ]
    for box in boxes:
        _draw(axis, box)
    for x in (1.5, 4.2):
        _arrow(axis, (x, 5.4), (x, 5.0))
        _arrow(axis, (x, 4.2), (x, 3.8))
        _arrow(axis, (x, 3.0), (x, 2.6))
    _arrow(axis, (2.8, 1.9), (2.8, 1.6))
    _arrow(axis, (2.8, 1.0), (2.8, 0.7))
    return figure
