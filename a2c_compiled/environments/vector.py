"""Adapters between gymnasium's vector environments and :class:`~a2c_compiled.environments.Environments`, in both directions.

In shapes, ``*event`` is the shape of one action.
"""

from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

from a2c_compiled.environments.envpool import check_batch_size
from a2c_compiled.environments.protocol import Environments, EnvironmentStep, Observation
from a2c_compiled.environments.replay import CannotResume, batched_observations, restore_vector, vector_state
from a2c_compiled.environments.workers import calling


def observation_tensor(observation: Any) -> Observation:
    """Copies an observation to a tensor on the CPU.

    The copy is needed because environments may overwrite the arrays that they returned.

    Args:
        observation: an array, or a dict or tuple of arrays, of any shape ``[N, ...]``.

    Returns:
        A tensor of the same shape: float32 if the array is float64, otherwise the array's dtype. A dict or tuple becomes a tuple of
        tensors in the order of the dict or tuple.
    """
    if isinstance(observation, (dict, tuple)):
        parts = observation.values() if isinstance(observation, dict) else observation
        return tuple(_array_tensor(part) for part in parts)
    return _array_tensor(observation)


def _array_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32 if array.dtype == np.float64 else None))


class GymnasiumEnvironments:
    """Adapts a gymnasium vector environment to tensors: observations, rewards and flags are on ``device``.

    An observation that is a dict or a tuple becomes a tuple of tensors, in the order of the observation space.

    Args:
        envs: vector environment with autoreset mode SAME_STEP or NEXT_STEP.
        device: device of the tensors.

    Attributes:
        reset_takes_a_step: whether the autoreset mode is NEXT_STEP: the step after the end of an episode resets the environment, ignores
            the action, and is not counted. Then ``observation`` of a step is always the observation after the step before.

    Raises:
        ValueError: ``envs`` has another autoreset mode, or is a pool of envpool's whose ``batch_size`` is not ``num_envs``.
    """

    def __init__(self, envs: VectorEnv, device: torch.device | str = "cpu") -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(f"envs: expected autoreset mode SAME_STEP or NEXT_STEP, got {mode}")
        check_batch_size(envs)
        self.envs = envs
        self.num_envs = envs.num_envs
        self.device = torch.device(device)
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.reset_takes_a_step = mode == AutoresetMode.NEXT_STEP
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._observation: Optional[Observation] = None

    def reset(self, seed: Optional[int] = None) -> Observation:
        """Starts a new episode in every environment.

        Returns:
            The first observations, ``[N, ...]``, dtypes as in :func:`observation_tensor`.

        Raises:
            RuntimeError: a worker process of an AsyncVectorEnv has ended.
        """
        with calling(self.envs):
            observation, _ = self.envs.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._observation = self._tensor(observation)
        return self._observation

    def step(self, action: Tensor) -> EnvironmentStep:
        """Takes one step in every environment.

        Args:
            action: ``[N, *event]``, dtype as the action space requires.

        Raises:
            RuntimeError: a worker process of an AsyncVectorEnv has ended.
        """
        with calling(self.envs):
            observation, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        final = counted = None
        if self.reset_takes_a_step:
            counted = torch.from_numpy(~self._ended).to(self.device)
            self._ended = terminated | truncated
        elif "final_obs" in info:
            final = self._tensor(self._with_final(observation, info))
        self._observation = self._tensor(observation)
        return EnvironmentStep(
            self._observation,
            torch.from_numpy(reward.astype(np.float32)).to(self.device),
            torch.from_numpy(terminated.copy()).to(self.device),
            torch.from_numpy(truncated.copy()).to(self.device),
            final,
            counted,
        )

    def close(self) -> None:
        """Closes the vector environment.

        Raises:
            RuntimeError: a worker process of an AsyncVectorEnv has ended.
        """
        with calling(self.envs):
            self.envs.close()

    def state_dict(self) -> Dict[str, Tensor]:
        """Returns the state from which :meth:`load_state_dict` restores the current episodes.

        Returns:
            By name: ``observation.<i>``, ``[N, ...]``: part ``i`` of the current observation; ``reset_next``, ``[N]``, bool: True if the
            next step is spent on a reset. The other tensors hold the starts and actions of the episodes, or the state of gymnasium's
            vectorised CartPole.

        Raises:
            RuntimeError: :meth:`reset` has not been called, or a worker process of an AsyncVectorEnv has ended.
            CannotResume: the environments are of a kind that cannot be resumed exactly.
        """
        if self._observation is None:
            raise RuntimeError("expected reset() before state_dict()")
        with calling(self.envs):
            state = vector_state(self.envs)
        return {
            **state,
            "reset_next": torch.from_numpy(self._ended.copy()),
            **{f"observation.{i}": part.cpu() for i, part in enumerate(_parts(self._observation))},
        }

    def load_state_dict(self, state: Dict[str, Tensor]) -> Observation:
        """Restores what :meth:`state_dict` returned: replays the episodes, or writes the state of gymnasium's vectorised CartPole.

        Args:
            state: shapes and dtypes as in :meth:`state_dict`.

        Returns:
            The current observations, ``[N, ...]``.

        Raises:
            CannotResume: ``envs`` cannot be resumed, ``state`` belongs to other environments, or the replay does not end in ``state``.
                CannotResume is a ValueError.
            RuntimeError: a worker process of an AsyncVectorEnv has ended.
        """
        ended = state.get("reset_next", torch.zeros(0, dtype=torch.bool)).cpu().numpy().copy()
        with calling(self.envs):
            restored = restore_vector(self.envs, state, ended)
        observation = self._tensor(restored)
        replayed = {f"observation.{i}": part.cpu() for i, part in enumerate(_parts(observation))}
        if not all(name in state and torch.equal(part, state[name].cpu()) for name, part in replayed.items()):
            raise CannotResume(
                "env: expected the replay to end with the saved observation, got a different one; the environment cannot be resumed exactly"
            )
        self._ended, self._observation = ended, observation
        return observation

    def _with_final(self, observation: Any, info: Dict[str, Any]) -> Any:
        """Returns ``observation``. If an episode ended, its final observation replaces the first observation of the next episode."""
        entries = zip(iterate(self.envs.observation_space, observation), info["final_obs"], info["_final_obs"], strict=True)
        last = [final if ended else new for new, final, ended in entries]
        return batched_observations(self.observation_space, last)

    def _tensor(self, observation: Any) -> Observation:
        copied = observation_tensor(observation)
        return copied.to(self.device) if isinstance(copied, Tensor) else tuple(part.to(self.device) for part in copied)


def _parts(observation: Observation) -> tuple[Tensor, ...]:
    return (observation,) if isinstance(observation, Tensor) else observation


class AsVector(VectorEnv):
    """Adapts :class:`~a2c_compiled.environments.Environments` to gymnasium's interface, with numpy arrays.

    It has no autoreset mode and reports no final observations, because an evaluation reads the first episode of each environment only. So
    :class:`GymnasiumEnvironments` refuses it.

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
