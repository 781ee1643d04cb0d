"""An environment of one's own, written in torch: a mass on a line must stop at a target.

Run:    python examples/own_environment.py    or: a2c-compiled train --env own_environment:StopAtTarget, in the folder examples
Prints: mean return of a policy that does nothing -74.7, of the trained policy -9.9 (4 s)
"""

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.environments import TensorEnvironments
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training.evaluation import evaluate, greedy_policy

UPDATES = 400


class StopAtTarget(TensorEnvironments):
    """The actions 0, 1 and 2 accelerate a mass to the left, not at all, and to the right. The target changes with each episode.

    * Physics (state of the simulation): ``[N, 3]``: position, velocity, target.
    * Reward: minus the distance to the target.
    * Terminated: the position is beyond -4 or 4; this costs 50. Truncated: after 50 steps.

    The three methods below are pure functions of tensors. ``RolloutCollector(..., compile=True)`` therefore compiles the environments
    and the policy as one graph, and on a GPU nothing is copied to the host.
    """

    noise_size, time_limit = 2, 50  # uniform random numbers for each new episode; steps until an episode is truncated
    observation_space, action_space = Box(-10.0, 10.0, (2,)), Discrete(3)

    def start(self, noise: Tensor) -> Tensor:
        position, target = (4 * noise - 2).unbind(-1)
        return torch.stack([position, torch.zeros_like(position), target], -1)

    def advance(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, velocity, target = physics.unbind(-1)
        velocity = velocity + 0.1 * (action - 1)
        position = position + 0.5 * velocity
        terminated = position.abs() > 4
        reward = -(position - target).abs() - 50.0 * terminated
        return torch.stack([position, velocity, target], -1), reward, terminated

    def observe(self, physics: Tensor) -> Tensor:
        position, velocity, target = physics.unbind(-1)
        return torch.stack([position - target, velocity], -1)


def main() -> None:
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 3))
    critic = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    loss = A2CLoss(actor, critic, distributions.Categorical(3), entropy_coef=0.01, critic_coef=0.1)
    step = TrainStep(loss, "adam", lr=3e-3, max_grad_norm=1.0, compile=False)
    collector = RolloutCollector(StopAtTarget(num_envs=64), loss, num_steps=16, seed=0)
    for update in range(1, UPDATES + 1):
        step(collector.collect())
        if update % 100 == 0:
            returns = collector.returns
            print(f"update {update}: mean return {sum(returns) / len(returns):.1f}")
    nothing = evaluate(lambda observation: torch.ones(len(observation), dtype=torch.int64).numpy(), StopAtTarget).mean()
    trained = evaluate(greedy_policy(loss), StopAtTarget).mean()
    print(f"mean return of a policy that does nothing {nothing:.1f}, of the trained policy {trained:.1f}")


if __name__ == "__main__":  # a2c-compiled imports this file and must not train here
    main()
