"""Measures functions of torchrl and Stable-Baselines3 with and without ``accelerate()``, on their own data in CPU memory."""

from typing import Any, Callable, Dict, List

import torch
from torch import Tensor

from a2c_compiled import Rollout
from a2c_compiled import functional as F
from a2c_compiled.benchmarks.contenders import estimator_peers, update_peers
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import COPY, OURS, Case, Contender, Make, PreparedCase, copy_contender
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.subjects import bench_update
from a2c_compiled.benchmarks.subjects.bench_estimators import GAE
from a2c_compiled.integrations.patching import Acceleration

ACCELERATED = f"{OURS} accelerate()"


def cases(plan: Plan) -> List[Case]:
    """Returns one case per library function and shape. The list is empty on a GPU and without the libraries."""
    listed: List[Case] = []
    if plan.device.type == "cpu" and estimator_peers.installed("stable_baselines3"):
        listed += [_sb3_case(shape) for shape in plan.estimators]
    if plan.device.type == "cpu" and estimator_peers.installed("torchrl"):
        listed += [_torchrl_case(name, shape, plan) for name in _TORCHRL for shape in plan.estimators]
        listed += [_torchrl_update_case(shape, plan) for shape in plan.updates]
    return listed


def _case(
    subject: str,
    shape: Shape,
    bytes_per_step: int,
    contenders: Callable[[Dict[str, Tensor]], Dict[str, Make]],
    layout: str = "[T, N]",
) -> Case:
    """Returns a case of a library function that computes GAE."""
    traffic = bytes_per_step * shape[0] * shape[1]

    def prepare() -> PreparedCase:
        steps = data.steps(shape, torch.device("cpu"))
        operands: Any = widened(GAE.inputs(steps)).values()
        expected: Any = F.generalized_advantage_estimate(GAMMA, LMBDA, *operands)
        return PreparedCase(expected, {COPY: copy_contender(traffic, torch.device("cpu")), **contenders(steps)})

    return Case(subject, "forward", layout, shape, prepare, traffic)


def _sb3_case(shape: Shape) -> Case:
    """Returns the case of ``RolloutBuffer.compute_returns_and_advantage``: three float32 arrays in, two out, 20 bytes per element."""
    return _case(
        "SB3 compute_returns_and_advantage",
        shape,
        20,
        lambda steps: {"SB3 RolloutBuffer": lambda: estimator_peers.sb3(steps), ACCELERATED: lambda: _sb3_accelerated(steps)},
    )


def _sb3_accelerated(steps: Dict[str, Tensor]) -> Contender:
    """Creates the contender of :func:`_sb3_case` that holds the function of ``accelerate()``."""
    from a2c_compiled.integrations.stable_baselines3 import accelerate

    with accelerate() as acceleration:
        contender = estimator_peers.sb3(steps)
        contender.call()
    _check_no_fallback(acceleration)
    return contender


_TORCHRL = ("generalized_advantage_estimate", "vec_generalized_advantage_estimate")


def _torchrl_case(name: str, shape: Shape, plan: Plan) -> Case:
    """Returns the case of a torchrl function: three float32 and two bool tensors ``[N, T, 1]`` in, two float32 tensors out."""

    def contenders(steps: Dict[str, Tensor]) -> Dict[str, Make]:
        makes: Dict[str, Make] = {ACCELERATED: lambda: _torchrl(name, steps, accelerated=True)}
        if name.startswith("vec_") or shape[1] <= plan.longest_loop:
            makes["torchrl"] = lambda: _torchrl(name, steps, accelerated=False)
        return makes

    return _case(f"torchrl {name}", shape, 22, contenders, "[N, T, 1]")


def _torchrl(name: str, steps: Dict[str, Tensor], accelerated: bool) -> Contender:
    """Creates a contender of :func:`_torchrl_case` that holds torchrl's function, or the function of ``accelerate()``."""
    from torchrl.objectives.value import functional

    from a2c_compiled.integrations.torchrl import accelerate

    batch = [step.t().contiguous().unsqueeze(-1) for step in GAE.inputs(steps).values()]
    function = getattr(functional, name)
    if accelerated:
        with accelerate() as acceleration:
            function = getattr(functional, name)
            function(GAMMA, LMBDA, *batch)
        _check_no_fallback(acceleration)
    return Contender(lambda: function(GAMMA, LMBDA, *batch), lambda result: [part.squeeze(-1).t() for part in result])


def _torchrl_update_case(shape: Shape, plan: Plan) -> Case:
    """Returns the case of a whole update with torchrl's ``A2CLoss``, the same update as in ``bench_update``."""

    def prepare() -> PreparedCase:
        rollout = data.rollout(shape, plan.device)
        contenders: Dict[str, Make] = {
            "torchrl A2CLoss": lambda: update_peers.torchrl_update(rollout, plan),
            ACCELERATED: lambda: _accelerated_update(rollout, plan),
        }
        return PreparedCase(bench_update.expected(rollout, plan), contenders)

    return Case("torchrl A2C update", "whole", "[N, T]", shape, prepare, tolerance=1e-3)


def _accelerated_update(rollout: Rollout, plan: Plan) -> Contender:
    """Creates the update with ``accelerate()`` active only during the call, because the contenders are timed in turn."""
    from torchrl.objectives import A2CLoss
    from torchrl.objectives.value import advantages

    from a2c_compiled.integrations.torchrl import accelerate

    # The attributes of torchrl that accelerate() replaces and that the update calls.
    patched = (
        (advantages, "generalized_advantage_estimate"),
        (advantages.ValueEstimatorBase, "_call_value_nets"),
        (A2CLoss, "_log_probs"),
        (A2CLoss, "loss_critic"),
    )
    originals = [(*attribute, getattr(*attribute)) for attribute in patched]
    with accelerate() as acceleration:
        replacements = [(*attribute, getattr(*attribute)) for attribute in patched]
        update_peers.torchrl_update(rollout, plan).call()
    _check_no_fallback(acceleration)
    contender = update_peers.torchrl_update(rollout, plan)

    def update() -> None:
        for replacement in replacements:
            setattr(*replacement)
        contender.call()
        for original in originals:
            setattr(*original)

    return contender._replace(call=update)


def _check_no_fallback(acceleration: Acceleration) -> None:
    """Raises RuntimeError if a call fell back to the library's own function: its time would be reported as ours."""
    if acceleration.fallbacks:
        raise RuntimeError(f"accelerate: expected no fallback to the library's own functions, got {acceleration.fallbacks}")
