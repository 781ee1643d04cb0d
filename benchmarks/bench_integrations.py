"""Other libraries before and after :mod:`a2c_compiled.integrations`: their own call, on their own data, in host memory."""

from typing import Any, Callable, Dict, List

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled.benchmarks import data, peers
from a2c_compiled.benchmarks.bench_estimators import GAE
from a2c_compiled.benchmarks.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.harness import COPY, OURS, Case, Contender, Field, Make, copy_contender
from a2c_compiled.benchmarks.modes import widened
from a2c_compiled.benchmarks.shapes import Plan, Shape

ACCELERATED = f"{OURS} accelerate()"


def cases(plan: Plan) -> List[Case]:
    """One comparison a library and a shape."""
    if plan.device.type != "cpu":
        return []
    return [_sb3_case(shape) for shape in plan.estimators] if peers.installed("stable_baselines3") else []


def _case(subject: str, shape: Shape, bytes_a_step: int, contenders: Callable[[Dict[str, Tensor]], Dict[str, Make]]) -> Case:
    """GAE, under the name that it has in a library."""
    traffic = bytes_a_step * shape[0] * shape[1]

    def enter() -> Field:
        steps = data.steps(shape, torch.device("cpu"))
        expected: Any = F.generalized_advantage_estimate(GAMMA, LMBDA, *widened(GAE.inputs(steps)).values())
        return Field(expected, {COPY: copy_contender(traffic, torch.device("cpu")), **contenders(steps)})

    return Case(subject, "forward", "[T, N]", shape, enter, traffic)


def _sb3_case(shape: Shape) -> Case:
    """``RolloutBuffer.compute_returns_and_advantage``: three float32 arrays in, two out."""
    return _case(
        "SB3 compute_returns_and_advantage",
        shape,
        20,
        lambda steps: {"SB3 RolloutBuffer": lambda: peers.sb3(steps), ACCELERATED: lambda: _sb3_accelerated(steps)},
    )


def _sb3_accelerated(steps: Dict[str, Tensor]) -> Contender:
    from a2c_compiled.integrations.stable_baselines3 import accelerate

    with accelerate() as acceleration:
        contender = peers.sb3(steps)
        contender.call()
    if acceleration.fallbacks:
        raise RuntimeError(f"left to the library itself: {acceleration.fallbacks}")
    return contender
