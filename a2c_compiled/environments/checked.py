"""Checks of a single environment: its class, its spaces, and what its methods return. A user's mistake is named in one line."""

import inspect
from typing import Any, Callable, Mapping, NoReturn, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces

from a2c_compiled._kinds import described

_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces whose observations are arrays or numbers of one shape."""


def check_call(function: Callable[..., Any], expected: str, *arguments: Any, **options: Any) -> None:
    """Raises TypeError, with what was ``expected``, if ``function`` cannot be called with these arguments. Does not call it."""
    try:
        inspect.signature(function).bind(*arguments, **options)
    except ValueError:
        pass  # a function in C may have no known signature
    except TypeError as error:
        raise TypeError(
            f"env: expected {expected}, got {getattr(function, '__qualname__', repr(function))} ({error})"
        ) from error


class Checked(gymnasium.Wrapper):
    """Checks what an environment returns, so that a mistake is named with the class, what was expected and what came.

    gymnasium's vector environments unpack and copy the results without their names. Each first observation is compared with the
    observation space; of a Box, each observation.

    Args:
        env: environment to wrap.

    Raises:
        TypeError: the observation space or the action space of ``env`` is not a space of gymnasium, or ``reset`` takes no ``seed`` or
            no ``options``.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._name = type(env.unwrapped).__name__
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if not isinstance(space, spaces.Space):
                raise TypeError(f"env: expected {self._name}.{name} to be a gymnasium space, got {described(space)}")
        check_call(env.reset, f"{self._name}.reset to take seed and options", seed=0, options=None)
        space = self.observation_space
        self._shape = space.shape if isinstance(space, spaces.Box) else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Raises:
            ValueError: the environment returns something other than an observation of its space and info.
        """
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            self._refuse("reset", "observation and info", _counted(result))
        if self._shape is None or getattr(result[0], "shape", None) != self._shape:
            self._check_observation("reset", result[0])
        return result[0], result[1]

    def step(self, action: Any) -> Tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step.

        Raises:
            ValueError: the environment returns something other than the five results of a step, with an observation of its space.
        """
        result = self.env.step(action)
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            self._refuse("step", "observation, reward, terminated, truncated and info", _counted(result))
        if self._shape is not None and getattr(observation, "shape", None) != self._shape:
            self._check_observation("step", observation)
        return observation, reward, terminated, truncated, info

    def _check_observation(self, method: str, observation: Any) -> None:
        difference = _difference(self.observation_space, observation)
        if difference is not None:
            self._refuse(method, *difference)

    def _refuse(self, method: str, expected: str, got: str) -> NoReturn:
        refuse(self._name, method, expected, got)


def refuse(name: str, method: str, expected: str, got: str) -> NoReturn:
    """Raises the ValueError of a ``method`` of the class ``name`` that returns something else than ``expected``."""
    raise ValueError(f"env: expected {name}.{method}() to return {expected}, got {got}")


def _counted(result: Any) -> str:
    return f"a {type(result).__name__} of {len(result)}" if isinstance(result, (tuple, list)) else described(result)


def _difference(space: spaces.Space[Any], observation: Any, name: str = "observation") -> Optional[Tuple[str, str]]:
    """Returns what the ``space`` expects and what ``observation`` is if its structure or a shape differs; otherwise None.

    ``name`` names the observation, such as ``observation['camera']``.
    """
    if isinstance(space, spaces.Dict):
        keys = [*space.spaces]
        if not isinstance(observation, Mapping):
            return f"{name} as a mapping with the keys {keys}", described(observation)
        if {*keys} != {*observation}:
            return f"{name} as a mapping with the keys {keys}", f"{[*observation]}"
        parts = [(space[key], observation[key], f"{name}[{key!r}]") for key in keys]
    elif isinstance(space, spaces.Tuple):
        if not isinstance(observation, (tuple, list)) or len(observation) != len(space.spaces):
            return f"{name} as a tuple of {len(space.spaces)}", _counted(observation)
        parts = [(part, observation[i], f"{name}[{i}]") for i, part in enumerate(space.spaces)]
    else:
        shape = np.shape(observation) if isinstance(space, _ARRAYS) else space.shape
        return None if shape == space.shape else (f"{name} of shape {list(space.shape or ())}", f"shape {list(shape or ())}")
    return next((found for found in (_difference(*part) for part in parts) if found is not None), None)
