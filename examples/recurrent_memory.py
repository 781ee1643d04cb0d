"""A task that needs memory: a feedforward policy cannot solve it, a recurrent one does.

Run:    python examples/recurrent_memory.py
Prints: right answers: feedforward 50 %, recurrent 100 % (4 s)
"""

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.environments import TensorEnvironments
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.rollouts import RolloutCollector

UPDATES, NUM_ENVS, LENGTH = 300, 64, 10


class RememberTheCue(TensorEnvironments):
    """The first observation shows a cue, -1 or 1. The last step of an episode asks for it: action 0 or 1. The other actions do nothing.

    * Physics: ``[N, 2]``: the cue, and the number of steps so far.
    * Observation: ``[N, 2]``: the cue at the first step, else 0; and 1 at the last step, else 0.
    * Reward: 1 for the right answer, -1 for the wrong one, 0 at all other steps.
    """

    noise_size, time_limit = 1, LENGTH + 1
    observation_space, action_space = Box(-1.0, 1.0, (2,)), Discrete(2)

    def start(self, noise: Tensor) -> Tensor:
        cue = torch.where(noise < 0.5, -1.0, 1.0)
        return torch.cat([cue, torch.zeros_like(cue)], -1)

    def advance(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cue, steps = physics.unbind(-1)
        is_last = steps == LENGTH - 1
        return torch.stack([cue, steps + 1], -1), is_last * cue * (2 * action - 1), is_last

    def observe(self, physics: Tensor) -> Tensor:
        cue, steps = physics.unbind(-1)
        return torch.stack([cue * (steps == 0), (steps == LENGTH - 1).to(cue.dtype)], -1)


def right_answers(actor: nn.Module, critic: nn.Module) -> float:
    """Trains the networks and returns the fraction of right answers in the last 20 rollouts.

    With recurrent networks, the collector records a tuple as observation: what the environment shows, the hidden state before the step,
    and a flag that is True where the state starts anew. The loss starts the networks from the recorded state at the first step of a
    rollout and of an episode. Gradients flow back over the steps of one rollout, so a rollout should be as long as the memory: here it is
    one episode.
    """
    loss = A2CLoss(actor, critic, distributions.Categorical(2), entropy_coef=0.01, critic_coef=0.5)
    step = TrainStep(loss, "adam", lr=3e-3, compile=False)
    collector = RolloutCollector(RememberTheCue(NUM_ENVS), loss, num_steps=LENGTH, seed=0)
    returns: list[float] = []
    for _ in range(UPDATES):
        step(collector.collect())
        returns += collector.returns
    recent = returns[-20 * NUM_ENVS :]
    return (1 + sum(recent) / len(recent)) / 2


def feedforward(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, outputs))


torch.manual_seed(0)
# One recurrent layer for both networks. One scan computes all steps of a MinGRU; nn.GRUCell and nn.LSTMCell work, too.
trunk = Recurrent(MinGRU(32, 32), encoder=nn.Sequential(nn.Linear(2, 32), nn.Tanh()))
without = right_answers(feedforward(2), feedforward(1))
with_memory = right_answers(nn.Sequential(trunk, nn.Linear(32, 2)), nn.Sequential(trunk, nn.Linear(32, 1)))
print(f"right answers: feedforward {100 * without:.0f} %, recurrent {100 * with_memory:.0f} %")
