"""Gymnasium's vector environments as :class:`~a2c_compiled.training.environments.Environments`."""

import importlib
from typing import Any, Optional

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from a2c_compiled.training.environments.protocol import EnvironmentStep


def make_vector(env_id: str, num_envs: int, vectorization: str = "auto", **options: Any) -> VectorEnv:
    """``num_envs`` copies side by side: gymnasium's own vectorised version (``"gymnasium"``), one after the other (``"sync"``) or a process
    each (``"async"``); ``"auto"`` takes the first of these that there is.

    ``"module:Name-v0"`` is ``"Name-v0"`` once ``module`` is imported, as everywhere in gymnasium.

    Raises:
        ValueError: gymnasium knows no such environment, or cannot make it here.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        own = gymnasium.spec(name).vector_entry_point is not None
        if vectorization == "gymnasium" or (vectorization == "auto" and own):
            return gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options)
        # SAME_STEP wastes no step on the reset and hands the real final observation over beside the new one.
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        mode = "async" if vectorization == "async" else "sync"
        return gymnasium.make_vec(env_id, num_envs, vectorization_mode=mode, vector_kwargs=kwargs, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"env: expected an environment that gymnasium can make here, got {env_id!r} ({error})") from error


def observation_tensor(observation: np.ndarray) -> Tensor:
    """A copy, since environments may write into what they returned; float64 observations as float32, the rest as it is."""
    return torch.from_numpy(np.array(observation, dtype=np.float32 if observation.dtype == np.float64 else None))


class GymnasiumEnvironments:
    """A gymnasium vector environment whose observations and rewards come as tensors on ``device``.

    Args:
        envs: with autoreset mode SAME_STEP or NEXT_STEP.
        device: of the tensors.

    Raises:
        ValueError: the environments do not reset themselves.
    """

    def __init__(self, envs: VectorEnv, device: torch.device | str = "cpu") -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(f"envs: expected autoreset mode SAME_STEP or NEXT_STEP, got {mode}")
        self.envs = envs
        self.num_envs = envs.num_envs
        self.device = torch.device(device)
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self._resets_in_a_step = mode == AutoresetMode.NEXT_STEP
        self._ended = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seed: Optional[int] = None) -> Tensor:
        """New episodes everywhere."""
        observation, _ = self.envs.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return self._tensor(observation)

    def step(self, action: Tensor) -> EnvironmentStep:
        """One step of every environment."""
        observation, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        final = counted = None
        if self._resets_in_a_step:
            counted = torch.from_numpy(~self._ended).to(self.device)
            self._ended = terminated | truncated
        elif "final_obs" in info:
            final = observation.copy()
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = info["final_obs"][i]
        return EnvironmentStep(
            self._tensor(observation),
            torch.from_numpy(reward.astype(np.float32)).to(self.device),
            torch.from_numpy(terminated.copy()).to(self.device),
            torch.from_numpy(truncated.copy()).to(self.device),
            None if final is None else self._tensor(final),
            counted,
        )

    def close(self) -> None:
        """Close them."""
        self.envs.close()

    def _tensor(self, observation: np.ndarray) -> Tensor:
        return observation_tensor(observation).to(self.device)
