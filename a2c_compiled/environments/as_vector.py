"""Any environments with the interface of gymnasium's vector environments, for evaluations."""

from typing import Any, Optional, Tuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from a2c_compiled.environments.protocol import Environments, Observation


class AsVector(VectorEnv):
    """Adapts :class:`~a2c_compiled.environments.Environments` to gymnasium's interface, with numpy arrays.

    It has no autoreset mode and reports no final observations, because an evaluation reads the first episode of each environment only. So
    :class:`~a2c_compiled.environments.GymnasiumEnvironments` refuses it.

    Args:
        envs: the environments.
    """

    metadata = {"autoreset_mode": None, "render_modes": []}

    def __init__(self, envs: Environments) -> None:
        self._envs = envs
        self.num_envs = envs.num_envs
        self.single_observation_space, self.single_action_space = envs.observation_space, envs.action_space
        self.observation_space = batch_space(envs.observation_space, self.num_envs)
        self.action_space = batch_space(envs.action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Optional[dict[str, Any]] = None
    ) -> Tuple[Any, dict[str, Any]]:
        """Starts a new episode in every environment. ``seed`` must be an integer or None, and ``options`` None."""
        if isinstance(seed, list) or options is not None:
            raise ValueError(f"reset: expected one seed and no options, got seed {seed!r} and options {options!r}")
        return _arrays(self._envs.reset(seed)), {}

    def step(self, actions: Any) -> Tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one step in every environment."""
        step = self._envs.step(torch.as_tensor(actions).to(self._envs.device))
        reward, terminated, truncated = (x.cpu().numpy() for x in (step.reward, step.terminated, step.truncated))
        return _arrays(step.observation), reward, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments."""
        self._envs.close()


def _arrays(observation: Observation) -> Any:
    return observation.cpu().numpy() if isinstance(observation, Tensor) else tuple(_arrays(part) for part in observation)
