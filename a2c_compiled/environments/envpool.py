"""envpool's environments, which are stepped in C++ threads, as a gymnasium vector environment that reset() seeds.

Source: Weng et al., EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine, 2022.
"""

import importlib
from typing import Any, Callable, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from a2c_compiled.environments.source import ENVPOOL

SEEDS = 2**31
"""envpool's seeds are int32 numbers."""


class EnvPool(VectorEnv):
    """Adapts a pool of envpool's environments. A reset with a seed makes a new pool, because envpool takes a seed only there.

    The autoreset mode is NEXT_STEP.

    Args:
        make: makes a pool from a seed. The pool has gymnasium's interface, and ``batch_size`` equal to ``num_envs``.
        pool: the first pool.
        seed: seed of the first pool.

    Raises:
        ValueError: ``batch_size`` is not ``num_envs``.
    """

    def __init__(self, make: Callable[[int], Any], pool: Any, seed: int) -> None:
        check_batch_size(pool)
        self._make, self._pool, self._seed, self._is_new = make, pool, seed, True
        self.num_envs = pool.num_envs
        self.metadata, self.render_mode = pool.metadata, pool.render_mode
        # envpool has the spaces of single environments under both names.
        self.single_observation_space, self.single_action_space = pool.observation_space, pool.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> Tuple[Any, dict[str, Any]]:
        """Starts new episodes. With an integer as ``seed``, the following episodes depend only on it."""
        if isinstance(seed, int) and not (self._is_new and seed == self._seed):
            self._pool.close()
            self._pool, self._seed = self._make(seed), seed
        self._is_new = False
        observation, info = self._pool.reset(options=options)
        return self._ordered(observation), info

    def step(self, actions: Any) -> Tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one step in every environment."""
        observation, *results = self._pool.step(actions)
        return self._ordered(observation), *results

    def render(self) -> Any:
        """Renders the first environment: ``[1, H, W, 3]``, uint8."""
        return self._pool.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the pool."""
        self._pool.close()

    def _ordered(self, observation: Any) -> Any:
        """Returns ``observation``. A dict gets the order of the observation space, from which networks are built."""
        if isinstance(observation, dict) and isinstance(self.single_observation_space, gymnasium.spaces.Dict):
            return {name: observation[name] for name in self.single_observation_space.spaces}
        return observation


def make_envpool(name: str, num_envs: int, seed: int = 0, **options: Any) -> EnvPool:
    """Makes environments of envpool.

    Args:
        name: envpool's name of the environment, such as ``"Pong-v5"``.
        num_envs: number of environments.
        seed: seed of the pool.
        options: options of ``envpool.make_gymnasium``.

    Raises:
        ValueError: envpool is not installed, or has no such environment, or cannot make it with these arguments.
    """
    try:
        envpool = importlib.import_module(ENVPOOL)
    except ImportError as error:
        raise ValueError(
            f"env: expected envpool to be installed for 'envpool:{name}' (pip install 'a2c-compiled[envpool]'), got {error}"
        ) from error

    def make(seed: int) -> Any:
        return envpool.make_gymnasium(name, num_envs=num_envs, seed=seed % SEEDS, **options)

    try:
        return EnvPool(make, make(seed), seed)
    except (AssertionError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"env: expected an environment that envpool can make here, got 'envpool:{name}' ({error})") from error


def is_pool(envs: Any) -> bool:
    """Returns whether ``envs`` is a pool of envpool's, without its adapter."""
    return any(base.__module__.partition(".")[0] == ENVPOOL for base in type(envs).__mro__)


def check_batch_size(envs: Any) -> None:
    """Raises ValueError if ``envs`` is a pool that returns the results of some environments instead of all."""
    config: Optional[dict[str, Any]] = envs.config if is_pool(envs) else None
    if config is not None and config["batch_size"] != config["num_envs"]:
        raise ValueError(
            f"batch_size: expected num_envs, so {config['num_envs']}, because a rollout has every environment at every step, got"
            f" {config['batch_size']}"
        )
