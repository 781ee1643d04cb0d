"""Measures the A2C loss, including generalized advantage estimation: forward, and forward plus the gradients of all parameters."""

from functools import partial
from typing import Dict, List

from torch import Tensor, nn

from a2c_compiled.benchmarks.contenders import update_peers
from a2c_compiled.benchmarks.contenders.loops import gradients
from a2c_compiled.benchmarks.contenders.modes import Modes, widened
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import Case, PreparedCase
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape


def cases(plan: Plan) -> List[Case]:
    """Returns the forward and the forward+backward case of each shape."""
    modes = Modes(_LossParts(data.loss(plan.device)), _inputs((3, 5), plan), ("T", "N"), dynamic=False)
    directions = ("forward", "forward+backward")
    return [_case(modes, direction, shape, plan) for shape in plan.updates for direction in directions]


class _LossParts(nn.Module):
    """Returns the objective, critic and entropy losses as a list. All implementations compute these three and differentiate their sum."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, done: Tensor, terminated: Tensor
    ) -> List[Tensor]:
        losses = self.loss(observation, action, reward, next_observation, done, terminated)
        objective, critic, entropy = losses.loss_objective, losses.loss_critic, losses.loss_entropy
        # TorchScript needs the assertions: the fields are Optional.
        assert objective is not None
        assert critic is not None
        assert entropy is not None
        return [objective, critic, entropy]


def _inputs(shape: Shape, plan: Plan) -> Dict[str, Tensor]:
    """Returns the rollout entries that the loss reads, by name: the first six fields."""
    return dict(list(data.rollout(shape, plan.device)._asdict().items())[:6])


def _case(modes: Modes, direction: str, shape: Shape, plan: Plan) -> Case:
    def prepare() -> PreparedCase:
        inputs = _inputs(shape, plan)
        oracle = modes.oracle()
        expected, finish = oracle(**widened(inputs)), None
        if direction != "forward":
            expected = gradients(expected, list(oracle.parameters()))
            finish = partial(gradients, parameters=list(modes.module.parameters()))
        ours = modes.contenders(inputs, plan, finish, loop_steps=shape[1])
        return PreparedCase(
            expected, {**ours, **update_peers.torchrl_losses(data.rollout(shape, plan.device), plan, direction)}
        )

    return Case("A2C loss", direction, "[T, N]", shape, prepare, tolerance=1e-3)
