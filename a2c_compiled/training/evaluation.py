"""How well a policy does."""

from typing import Any, Callable, Dict, NamedTuple, Optional

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from a2c_compiled.environments import make_vector, observation_tensor
from a2c_compiled.losses import A2CLoss
from a2c_compiled.recurrent import hidden_size, next_hidden

EVALUATION_SEED = 10_000
"""Of the environments that policies are compared in."""

MAX_STEPS = 27_000
"""After which an episode counts as it stands, since some never end: half an hour of an Atari game at four frames a step."""

SIDE_BY_SIDE = 100
"""Environments that are played together at most."""

Policy = Callable[[Any], np.ndarray]
"""From a batch of observations, as gymnasium's vector environments give them, to a batch of actions. One that remembers has a method
``reset()`` as well, which is called where new episodes begin."""


class Episodes(NamedTuple):
    """What came of some episodes: undiscounted ``returns``, float64, and ``lengths`` in steps, int64, both ``[episodes]``."""

    returns: np.ndarray
    lengths: np.ndarray


class NetworkPolicy:
    """The policy of a loss: the most probable actions of its actor network, or sampled ones. Cells remember from step to step.

    Args:
        loss: whose actor network and distribution act.
        sampled: sample, with torch's generator.
    """

    def __init__(self, loss: A2CLoss, sampled: bool = False) -> None:
        self._actor = loss.actor_network
        self._choose = loss.distribution.sample if sampled else loss.distribution.mode
        self._device = loss.entropy_coef.device
        # The critic's cells have their part in what is remembered, and their place in it.
        self._cells = nn.ModuleList([loss.actor_network, loss.critic_network])
        self._hidden: Optional[Tensor] = None

    def reset(self) -> None:
        """Forget everything."""
        self._hidden = None

    @torch.no_grad()
    def __call__(self, observation: Any) -> np.ndarray:
        """Actions for a batch of observations."""
        x: Any = observation_tensor(observation)
        x = x.to(self._device) if isinstance(x, Tensor) else tuple(part.to(self._device) for part in x)
        size = hidden_size(self._cells)
        params = self._actor(x) if size == 0 else self._remembering(x, size)
        return self._choose(params).cpu().numpy()

    def _remembering(self, x: Tensor, size: int) -> Tensor:
        before = torch.zeros(len(x), size, device=x.device) if self._hidden is None else self._hidden
        self._hidden = next_hidden(self._cells, x, before)
        begin = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        return self._actor((x.unsqueeze(0), before.unsqueeze(0), begin)).squeeze(0)


def greedy_policy(loss: A2CLoss) -> NetworkPolicy:
    """The policy of ``loss`` that takes the most probable action."""
    return NetworkPolicy(loss)


def evaluate(policy: Policy, env_id: str, episodes: int = 100, seed: int = EVALUATION_SEED, **env_options: Any) -> np.ndarray:
    """Undiscounted returns of ``episodes`` episodes: those of :func:`play`."""
    return play(policy, env_id, episodes, seed, **env_options).returns


def play(policy: Policy, env_id: str, episodes: int = 100, seed: int = EVALUATION_SEED, **env_options: Any) -> Episodes:
    """Play ``episodes`` episodes, the first of each environment, so that short ones count no more often than long ones.

    Args:
        policy: what acts.
        env_id: one of gymnasium's names.
        episodes: how many.
        seed: of the first environment; the others have those that follow.
        env_options: of :func:`~a2c_compiled.environments.make_vector`: ``frame_stack`` and what the environment itself takes.

    Raises:
        ValueError: there is no such environment, or no episode to play.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}")
    played = []
    for start in range(0, episodes, SIDE_BY_SIDE):
        envs = make_vector(env_id, min(SIDE_BY_SIDE, episodes - start), **env_options)
        try:
            played.append(_first_episodes(policy, envs, seed + start))
        finally:
            envs.close()
    return Episodes(*(np.concatenate(parts) for parts in zip(*played, strict=True)))


def summary(episodes: Episodes) -> Dict[str, Dict[str, float]]:
    """Mean, standard deviation, least and greatest of ``return`` and ``length``."""
    columns = {"return": episodes.returns, "length": episodes.lengths}
    return {
        name: {"mean": float(x.mean()), "std": float(x.std()), "min": float(x.min()), "max": float(x.max())}
        for name, x in columns.items()
    }


def forget(policy: Policy) -> None:
    """Let a policy that remembers begin anew."""
    reset = getattr(policy, "reset", None)
    if reset is not None:
        reset()


def _first_episodes(policy: Policy, envs: VectorEnv, seed: int) -> Episodes:
    forget(policy)
    observation, _ = envs.reset(seed=seed)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    running = np.ones(envs.num_envs, dtype=bool)
    for _ in range(MAX_STEPS):
        observation, reward, terminated, truncated, _ = envs.step(policy(observation))
        returns[running] += reward[running]
        lengths[running] += 1
        running &= ~(terminated | truncated)
        if not running.any():
            break
    return Episodes(returns, lengths)
