"""One A2C update (GAE, loss, backward, clipping, RMSprop): eager, compiled step, and compiled loss in a loop of one's own."""

import copy
from functools import partial
from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled import A2CLoss, Rollout, TrainStep
from a2c_compiled.distributions import Categorical
from benchmarks.harness import DEVICE, Contender, Row, compare

OBSERVATION, ACTIONS, HIDDEN = 8, 4, 64


def run(shapes: Sequence[Tuple[int, int]], samples: int) -> List[Row]:
    """One comparison a shape."""
    rows: List[Row] = []
    for num_envs, num_steps in shapes:
        rollout = _rollout(num_envs, num_steps)
        loss = _loss()
        eager = TrainStep(copy.deepcopy(loss), compile=False)
        compiled = TrainStep(copy.deepcopy(loss), compile=True, dynamic=False)
        contenders: dict[str, Contender] = {
            "TrainStep, eager": partial(_grad_norm, eager, rollout),
            "TrainStep, compiled": partial(_grad_norm, compiled, rollout),
            "compiled loss, own loop": _own_loop(copy.deepcopy(loss), rollout),
        }
        rows += compare("update", (num_envs, num_steps), contenders, samples)
    return rows


def _grad_norm(step: TrainStep, rollout: Rollout) -> Tensor:
    return step(rollout).grad_norm


def _own_loop(loss: A2CLoss, rollout: Rollout) -> Contender:
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    optimizer = torch.optim.RMSprop(loss.parameters(), lr=7e-4, alpha=0.99, eps=1e-5)

    def update() -> Tensor:
        losses = compiled(*rollout[:6])
        optimizer.zero_grad()
        (losses.loss_objective + losses.loss_critic + losses.loss_entropy).backward()
        grad_norm = nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        return grad_norm

    return update


def _loss() -> A2CLoss:
    torch.manual_seed(0)
    return A2CLoss(_network(ACTIONS), _network(1), Categorical(ACTIONS)).to(DEVICE)


def _network(outputs: int) -> nn.Module:
    layers = [nn.Linear(OBSERVATION, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(*layers)


def _rollout(num_envs: int, num_steps: int) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, num_envs)
    observation, next_observation = torch.randn(2, *shape, OBSERVATION, generator=generator)
    done = torch.rand(shape, generator=generator) < 0.05
    terminated = done & (torch.rand(shape, generator=generator) < 0.5)
    action = torch.randint(ACTIONS, shape, generator=generator)
    reward = torch.randn(shape, generator=generator)
    return Rollout(*(part.to(DEVICE) for part in (observation, action, reward, next_observation, done, terminated)))
