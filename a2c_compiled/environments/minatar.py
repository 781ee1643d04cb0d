"""MinAtar's games, with all randomness drawn from the environment's ``np_random``."""

from typing import Any, Tuple

import gymnasium
import numpy as np
from gymnasium.utils import seeding


def register() -> None:
    """Registers MinAtar's games with gymnasium, if they are not registered.

    Raises:
        ImportError: MinAtar is not installed.
    """
    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        import minatar.gym

        minatar.gym.register_envs()


class SeededMinAtar(gymnasium.Wrapper):
    """Makes a MinAtar game replayable.

    The game draws from ``np_random`` instead of a generator of its own. :meth:`reset` clears the last action of the previous episode.
    Otherwise, the game's sticky actions could repeat that action in the new episode.

    Source: Young and Tian, MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments, 2019.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Starts an episode. ``seed`` seeds ``np_random``; None continues ``np_random`` from its current state."""
        env: Any = self.unwrapped
        if seed is not None:
            env.np_random, _ = seeding.np_random(seed)
        env.game.random = env.game.env.random = np.random.RandomState(env.np_random.bit_generator)
        env.game.last_action = 0
        return self.env.reset(options=options)
