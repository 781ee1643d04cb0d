"""Several agents with one reward: three agents must stand on three landmarks, with one shared actor and a central critic.

Run:    python examples/several_agents.py
Prints: landmarks covered at the end of an episode: 1.6 of 3 before training, 2.8 after it (3 s)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, estimators

UPDATES, NUM_ENVS, LENGTH, AGENTS, PLACES, LANDMARKS = 400, 64, 8, 3, 5, (0, 2, 4)

# Shapes: T time, N environments, K agents. Rewards and flags without the dimension of agents belong to the team.


def observe(place: Tensor) -> Tensor:
    """Returns what each agent sees: its own place, and the number of other agents at each place.

    Shapes: ``place`` ``[N, K]``, int64. Result ``[N, K, 2 * PLACES]``.
    """
    own = one_hot(place, PLACES).float()
    return torch.cat([own, own.sum(-2, keepdim=True) - own], -1)


def covered(place: Tensor) -> Tensor:
    """Returns the number of landmarks on which an agent stands. Shapes: ``place`` ``[N, K]``, int64. Result ``[N]``."""
    return torch.stack([(place == landmark).any(-1) for landmark in LANDMARKS]).sum(0).float()


class CentralCritic(nn.Module):
    """One value for the team, from what all agents see: ``[T, N, K, F]`` to ``[T, N, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(AGENTS * 2 * PLACES, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, observation: Tensor) -> Tensor:
        return self.layers(observation.flatten(-2))


def play(actor: nn.Module, distribution: distributions.Distribution) -> tuple[Rollout, Tensor]:
    """Plays one episode of ``LENGTH`` steps in each environment. Returns the rollout, and the places at the end, ``[N, K]``.

    An episode ends by time alone, so no step is ``terminated``: the last step bootstraps from its next observation.
    """
    place = torch.randint(PLACES, (NUM_ENVS, AGENTS))
    steps = []
    for t in range(LENGTH):
        observation = observe(place)
        with torch.no_grad():
            action = distribution.sample(actor(observation))  # [N, K]: 0 moves down, 1 stays, 2 moves up
        place = (place + action - 1).clamp(0, PLACES - 1)
        done = torch.full((NUM_ENVS,), t == LENGTH - 1)
        steps.append((observation, action, covered(place), observe(place), done, torch.zeros_like(done)))
    return Rollout(*map(torch.stack, zip(*steps, strict=True))), place


torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(2 * PLACES, 64), nn.Tanh(), nn.Linear(64, 3))  # the same for every agent
estimator = estimators.MultiAgentGAE(gamma=0.95, lmbda=0.9, time_dim=-4)  # time first: [T, N, K]
loss = A2CLoss(actor, CentralCritic(), distributions.Categorical(3), estimator, entropy_coef=0.02, critic_coef=0.5)
step = TrainStep(loss, "adam", lr=3e-3, compile=False)

before = covered(play(actor, loss.distribution)[1]).mean()
for update in range(1, UPDATES + 1):
    rollout, place = play(actor, loss.distribution)
    step(rollout)
    if update % 100 == 0:
        print(f"update {update}: {covered(place).mean():.2f} landmarks")
loss.entropy_coef = 0.0
after = covered(play(actor, loss.distribution)[1]).mean()
print(f"landmarks covered at the end of an episode: {before:.1f} of {len(LANDMARKS)} before training, {after:.1f} after it")
