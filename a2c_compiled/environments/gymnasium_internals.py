"""Reads and writes private attributes of gymnasium's vector environments, so that the environments can be resumed and closed.

If another version of gymnasium lacks an attribute, the functions raise AttributeError. The caller then does not resume the environments.
"""

from typing import Any, Dict

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

_CARTPOLE = {"physics": "state", "steps": "steps", "ended": "prev_done"}


def cartpole_state(envs: CartPoleVectorEnv) -> Dict[str, np.ndarray]:
    """Returns copies of the state arrays of gymnasium's vectorised CartPole.

    The arrays are ``physics`` (the state of the simulation), ``steps`` and ``ended``.

    Raises:
        AttributeError: this version of gymnasium lacks one of the attributes.
    """
    return {name: _array(envs, attribute).copy() for name, attribute in _CARTPOLE.items()}


def set_cartpole_state(envs: CartPoleVectorEnv, state: Dict[str, np.ndarray]) -> None:
    """Writes copies of ``state``, as :func:`cartpole_state` returned it, to ``envs``.

    Raises:
        AttributeError: this version of gymnasium lacks one of the attributes.
    """
    cartpole_state(envs)  # raises AttributeError before anything is written
    for name, attribute in _CARTPOLE.items():
        setattr(envs, attribute, state[name].copy())


def set_reset_next(envs: SyncVectorEnv, ended: np.ndarray) -> None:
    """Makes the next step of each environment a reset if its entry of ``ended``, ``[N]``, bool, is true.

    Raises:
        AttributeError: this version of gymnasium lacks the attribute.
    """
    _array(envs, "_autoreset_envs")
    envs._autoreset_envs = ended.copy()


def forget_pending_call(envs: AsyncVectorEnv) -> None:
    """Makes ``close`` of ``envs`` not wait for the answers to a call that did not end."""
    envs._state = AsyncState.DEFAULT


def _array(envs: Any, attribute: str) -> np.ndarray:
    """Returns an attribute of ``envs``. Raises AttributeError if the attribute is missing or not an array."""
    array = getattr(envs, attribute, None)
    if not isinstance(array, np.ndarray):
        raise AttributeError(f"gymnasium {gymnasium.__version__} has no {attribute!r} in {type(envs).__name__}")
    return array
