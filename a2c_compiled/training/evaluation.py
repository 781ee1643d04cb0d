"""How well a policy does."""

from typing import Callable

import numpy as np
import torch

from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.environments import make_vector, observation_tensor

EVALUATION_SEED = 10_000
"""Of the environments that policies are compared in."""

Policy = Callable[[np.ndarray], np.ndarray]
"""From a batch of observations to a batch of actions."""


def greedy_policy(loss: A2CLoss) -> Policy:
    """The policy of ``loss`` that takes the most probable action."""

    @torch.no_grad()
    def act(observation: np.ndarray) -> np.ndarray:
        params = loss.actor_network(observation_tensor(observation).to(loss.entropy_coef.device))
        return loss.distribution.mode(params).cpu().numpy()

    return act


def evaluate(policy: Policy, env_id: str, episodes: int = 100, seed: int = EVALUATION_SEED) -> np.ndarray:
    """Undiscounted returns of the first episode in each of ``episodes`` environments, ``[episodes]``."""
    envs = make_vector(env_id, episodes)
    try:
        observation, _ = envs.reset(seed=seed)
        returns = np.zeros(episodes)
        running = np.ones(episodes, dtype=bool)
        while running.any():
            observation, reward, terminated, truncated, _ = envs.step(policy(observation))
            returns[running] += reward[running]
            running &= ~(terminated | truncated)
    finally:
        envs.close()
    return returns
