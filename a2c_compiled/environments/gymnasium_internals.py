"""What gymnasium's vector environments keep of their own, and what is done where another version keeps it elsewhere: nothing is resumed."""

from typing import Any, Dict

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv

_CARTPOLE = {"physics": "state", "steps": "steps", "ended": "prev_done"}


def cartpole_state(envs: CartPoleVectorEnv) -> Dict[str, np.ndarray]:
    """Copies of what the episodes of gymnasium's own vectorised CartPole go on from.

    Raises:
        AttributeError: this version of gymnasium keeps it elsewhere.
    """
    return {name: _kept(envs, attribute).copy() for name, attribute in _CARTPOLE.items()}


def set_cartpole_state(envs: CartPoleVectorEnv, state: Dict[str, np.ndarray]) -> None:
    """Put copies of ``state`` in the place of what :func:`cartpole_state` reads; raises as that does."""
    cartpole_state(envs)
    for name, attribute in _CARTPOLE.items():
        setattr(envs, attribute, state[name].copy())


def set_reset_next(envs: SyncVectorEnv, ended: np.ndarray) -> None:
    """Have ``envs`` spend the next step of those that ``ended`` on a reset.

    Raises:
        AttributeError: this version of gymnasium keeps it elsewhere.
    """
    _kept(envs, "_autoreset_envs")
    envs._autoreset_envs = ended.copy()


def _kept(envs: Any, attribute: str) -> np.ndarray:
    array = getattr(envs, attribute, None)
    if not isinstance(array, np.ndarray):
        raise AttributeError(f"gymnasium {gymnasium.__version__} has no {attribute!r} in {type(envs).__name__}")
    return array
