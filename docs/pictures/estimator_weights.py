"""Which later rewards and values an estimate contains, and with which weights, on a trajectory with a termination and a truncation.

The weights are derivatives of the library's own results: the estimate at step t, by the reward or by the next value of step k.
"""

from typing import Callable, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from a2c_compiled import functional as F

STEPS, TERMINATED, TRUNCATED = 16, 5, 11
GAMMA, LMBDA = 0.99, 0.8
RED, ORANGE = "#c0392b", "#d68910"


class Trajectory(NamedTuple):
    """One trajectory, each ``[T]``."""

    value: Tensor
    next_value: Tensor
    reward: Tensor
    done: Tensor
    terminated: Tensor
    log_pi: Tensor
    log_mu: Tensor


def trajectory() -> Trajectory:
    """A trajectory of 16 steps: step 5 terminates an episode, step 11 truncates the next one, the third goes on after the last step."""
    generator = torch.Generator().manual_seed(1)

    def numbers() -> Tensor:
        return torch.randn(STEPS, generator=generator, dtype=torch.float64)

    step = torch.arange(STEPS)
    done, terminated = (step == TERMINATED) | (step == TRUNCATED), step == TERMINATED
    return Trajectory(numbers(), numbers(), numbers(), done, terminated, 0.5 * numbers(), 0.5 * numbers())


Estimate = Callable[[Trajectory], Tensor]
ESTIMATES: dict[str, Estimate] = {
    "gae": lambda x: F.generalized_advantage_estimate(GAMMA, LMBDA, *x[:5], time_dim=-1).advantage,
    "td0": lambda x: F.td0_return_estimate(GAMMA, x.next_value, x.reward, x.terminated),
    "td1": lambda x: F.td1_return_estimate(GAMMA, *x[1:5], time_dim=-1),
    "td_lambda": lambda x: F.td_lambda_return_estimate(GAMMA, LMBDA, *x[1:5], time_dim=-1),
    "n_step": lambda x: F.n_step_return_estimate(GAMMA, 3, *x[1:5], time_dim=-1),
    "vtrace": lambda x: F.vtrace_advantage_estimate(GAMMA, x.log_pi, x.log_mu, *x[:5], time_dim=-1).value_target,
    "upgo": lambda x: F.upgo_return_estimate(GAMMA, *x[:5], time_dim=-1),
    "retrace": lambda x: F.retrace_return_estimate(GAMMA, LMBDA, x.log_pi, x.log_mu, *x[:5], time_dim=-1),
    "reward2go": lambda x: F.reward2go(x.reward, x.done, GAMMA, -1, next_state_value=x.next_value, terminated=x.terminated),
}
FORWARD: dict[str, Estimate] = {
    "eligibility_trace": lambda x: F.eligibility_trace(GAMMA, LMBDA, x.reward, x.done, time_dim=-1),
}


def weights(estimate: Estimate, name: str) -> Tensor:
    """The derivative of the estimate at step t by entry k of the field ``name``: ``[T, T]``, t first."""
    data = trajectory()
    return torch.autograd.functional.jacobian(lambda tensor: estimate(data._replace(**{name: tensor})), getattr(data, name))


def figures() -> dict[str, Figure]:
    """One picture for each estimator, and one that compares values of lambda."""
    drawn = {f"weights_{name}": _matrices(estimate, ("reward", "next_value")) for name, estimate in ESTIMATES.items()}
    drawn |= {f"weights_{name}": _matrices(estimate, ("reward",)) for name, estimate in FORWARD.items()}
    drawn["weights_lambda"] = _lambdas()
    return drawn


_TITLES = {"reward": "weight of $r_k$", "next_value": "weight of $V(s_{k+1})$"}


def _matrices(estimate: Estimate, names: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(5.4, 3.3) if len(names) == 2 else (3.4, 3.3), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        title = _TITLES[name] if len(names) == 2 else "weight of $x_k$"
        image = axis.imshow(weights(estimate, name), cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(title)
        axis.set_xlabel("step k")
        axis.set_xticks(range(0, STEPS, 5))
        _ends(axis, both=True)
    axes[0].set_ylabel("estimate at step t")
    axes[0].set_yticks(range(0, STEPS, 5))
    figure.colorbar(image, ax=list(axes), shrink=0.75, aspect=15)
    ends = [Line2D([], [], color=RED, label="terminated"), Line2D([], [], color=ORANGE, linestyle="--", label="truncated")]
    figure.legend(handles=ends, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _ends(axis: Axes, both: bool) -> None:
    """Lines after the steps that end an episode."""
    for step, colour, style in ((TERMINATED, RED, "-"), (TRUNCATED, ORANGE, "--")):
        axis.axvline(step + 0.5, color=colour, linestyle=style, linewidth=1.5)
        if both:
            axis.axhline(step + 0.5, color=colour, linestyle=style, linewidth=1.5)


def _lambdas() -> Figure:
    figure = Figure(figsize=(5.4, 3.3), layout="constrained")
    axis = figure.subplots()
    episodes = (0, TERMINATED + 1), (TERMINATED + 1, TRUNCATED + 1), (TRUNCATED + 1, STEPS)
    for lmbda, colour in ((0.0, "#08306b"), (0.5, "#2171b5"), (0.9, "#41ab5d"), (0.95, "#e6851e"), (1.0, "#a50f15")):
        row = weights(
            lambda x, lmbda=lmbda: F.generalized_advantage_estimate(0.99, lmbda, *x[:5], time_dim=-1).advantage, "reward"
        )[TERMINATED + 1]
        for start, end in episodes:  # no line from one episode to the next
            (line,) = axis.plot(range(start, end), row[start:end], "o-", color=colour, markersize=4)
        line.set_label(rf"$\lambda$ = {lmbda:g}")
    _ends(axis, both=False)
    axis.set(xlabel="step k", ylabel=r"weight of $\delta_k$ in $A_6$", xticks=range(0, STEPS, 5))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
