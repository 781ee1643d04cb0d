"""MinAtar's games, whose chance comes from the environment's own generator."""

from typing import Any, Tuple

import gymnasium
import numpy as np
from gymnasium.utils import seeding


def register() -> None:
    """Make MinAtar's games known to gymnasium, unless they are.

    Raises:
        ImportError: MinAtar is not installed.
    """
    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        import minatar.gym

        minatar.gym.register_envs()


class MinAtarChance(gymnasium.Wrapper):
    """Lets a game draw from ``np_random``, and its sticky actions begin anew with each episode, so that it can be replayed.

    Source: Young and Tian, MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments, 2019.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        env: Any = self.unwrapped
        if seed is not None:
            env.np_random, _ = seeding.np_random(seed)
        env.game.random = env.game.env.random = np.random.RandomState(env.np_random.bit_generator)
        env.game.last_action = 0
        return self.env.reset(options=options)
