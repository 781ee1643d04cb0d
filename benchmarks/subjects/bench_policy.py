"""Measures the greedy policy: one call that maps observations to actions."""

import tempfile
from pathlib import Path
from typing import Any, List

import torch

from a2c_compiled.benchmarks.contenders.estimator_peers import installed
from a2c_compiled.benchmarks.contenders.modes import RUNTIME, Modes, widened
from a2c_compiled.benchmarks.contenders.update_peers import sb3_model
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import Case, Contender, PreparedCase, as_tensors
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.export import GreedyPolicy, export_onnx
from a2c_compiled.export.on_device.runtime import Policy


def cases(plan: Plan) -> List[Case]:
    """Returns one case per number of observations."""
    loss = data.loss(plan.device)
    policy = GreedyPolicy(loss.actor_network, loss.distribution)
    modes = Modes(policy, {"observation": _observations(5, plan.device)}, ("N",), dynamic=False)
    return [_case(modes, shape, plan) for shape in plan.policies]


def _observations(count: int, device: torch.device) -> torch.Tensor:
    return torch.randn(count, data.OBSERVATION, generator=torch.Generator().manual_seed(3)).to(device)


def _case(modes: Modes, shape: Shape, plan: Plan) -> Case:
    def prepare() -> PreparedCase:
        inputs = {"observation": _observations(shape[0], plan.device)}
        contenders = modes.contenders(inputs, plan)
        if plan.device.type == "cpu":
            contenders[RUNTIME] = lambda: _runtime(modes, inputs["observation"].numpy())
        if installed("stable_baselines3"):
            contenders["SB3 predict"] = lambda: _sb3(shape, plan, inputs["observation"].cpu().numpy())
        return PreparedCase(as_tensors(modes.oracle()(**widened(inputs))), contenders)

    return Case("greedy policy", "forward", "[N, ...]", shape, prepare)


def _runtime(modes: Modes, observation: Any) -> Contender:
    """Creates the contender that runs the exported policy in ``runtime.py``: numpy in and out, with all checks of the inputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(
            modes.module, {"observation": _observations(5, torch.device("cpu"))}, Path(folder) / "policy.onnx", ("N",)
        )
        policy = Policy.load(path, provider="cpu", threads=torch.get_num_threads())
    return Contender(lambda: policy.act(observation), lambda action: [torch.from_numpy(action)])


def _sb3(shape: Shape, plan: Plan, observation: Any) -> Contender:
    """Creates the contender that calls Stable-Baselines3's ``policy.predict``: numpy in and out."""
    policy = sb3_model((1, 5), plan.device).policy  # only the policy is used, so the shape of the rollout does not matter
    return Contender(
        lambda: policy.predict(observation, deterministic=True),
        lambda result: [torch.from_numpy(result[0])],
    )
