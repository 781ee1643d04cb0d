"""Gymnasium's vector environments as :class:`~a2c_compiled.environments.Environments`."""

import functools
import importlib
from typing import Any, Dict, Optional

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from torch import Tensor

from a2c_compiled.environments import minatar
from a2c_compiled.environments.protocol import EnvironmentStep, Observation
from a2c_compiled.environments.replay import CannotResume, Replayable, restore_vector, side_by_side, vector_state
from a2c_compiled.environments.worker_signals import deaf_to_ctrl_c

ATARI, MINATAR = "ALE", "MinAtar"


def make_vector(env_id: str, num_envs: int, vectorization: str = "auto", frame_stack: int = 1, **options: Any) -> VectorEnv:
    """``num_envs`` copies side by side: gymnasium's own vectorised version (``"gymnasium"``), one after the other (``"sync"``) or a process
    each (``"async"``); ``"auto"`` takes the first of these that there is.

    ``"module:Name-v0"`` is ``"Name-v0"`` once ``module`` is imported, as everywhere in gymnasium; ``"MinAtar/..."`` and ``"ALE/..."`` need
    no module. Atari's games (ALE) show grey images of 84 x 84 after every fourth frame. With ``frame_stack`` above 1, an observation is
    the last so many, in a new first dimension; of gymnasium's own vectorised versions only Atari's have that, at any number.

    Raises:
        ValueError: gymnasium knows no such environment, or cannot make it here or in this form.
    """
    for argument, number in (("num_envs", num_envs), ("frame_stack", frame_stack)):
        if number < 1:
            raise ValueError(f"{argument}: expected at least 1, got {number}")
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        _register(name)
        atari, own = gymnasium.spec(name).namespace == ATARI, gymnasium.spec(name).vector_entry_point is not None
        stacks = frame_stack == 1 or atari
        if vectorization == "gymnasium" or (vectorization == "auto" and own and stacks):
            if not stacks:
                raise ValueError(f"frame_stack: expected 1 with vectorization 'gymnasium', got {frame_stack}")
            if atari:
                options.setdefault("stack_num", frame_stack)
            return gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **options)
        # SAME_STEP wastes no step on the reset and hands the real final observation over beside the new one.
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        mode = "async" if vectorization == "async" else "sync"
        if atari:
            options.setdefault("frameskip", 1)  # the preprocessing skips frames itself
        wrappers = [functools.partial(_wrapped, frame_stack=frame_stack)]
        with deaf_to_ctrl_c():
            return gymnasium.make_vec(
                name, num_envs, vectorization_mode=mode, vector_kwargs=kwargs, wrappers=wrappers, **options
            )
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"env: expected an environment that gymnasium can make here, got {env_id!r} ({error})") from error


def _register(name: str) -> None:
    namespace, slash, _ = name.partition("/")
    if namespace == MINATAR and slash:
        minatar.register()
    elif namespace == ATARI and slash:
        gymnasium.register_envs(importlib.import_module("ale_py"))


def _wrapped(env: gymnasium.Env, frame_stack: int) -> Replayable:
    """Preprocessing, stacked frames, and around them what replays all of it."""
    namespace = None if env.spec is None else env.spec.namespace
    if namespace == ATARI:
        env = AtariPreprocessing(env)
    elif namespace == MINATAR:
        env = minatar.MinAtarChance(env)
    if frame_stack > 1:
        env = FrameStackObservation(env, frame_stack)
    return Replayable(env)


def observation_tensor(observation: Any) -> Observation:
    """A copy, since environments may write into what they returned; float64 observations as float32, the rest as it is. Of several
    observations, a dict or tuple, a tuple in their order."""
    if isinstance(observation, (dict, tuple)):
        parts = observation.values() if isinstance(observation, dict) else observation
        return tuple(_array_tensor(part) for part in parts)
    return _array_tensor(observation)


def _array_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32 if array.dtype == np.float64 else None))


class GymnasiumEnvironments:
    """A gymnasium vector environment whose observations and rewards come as tensors on ``device``.

    Observations that are a dict or a tuple come as a tuple of tensors, in the order of their space.

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
        self._observation: Optional[Observation] = None

    def reset(self, seed: Optional[int] = None) -> Observation:
        """New episodes everywhere."""
        observation, _ = self.envs.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._observation = self._tensor(observation)
        return self._observation

    def step(self, action: Tensor) -> EnvironmentStep:
        """One step of every environment."""
        observation, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        final = counted = None
        if self._resets_in_a_step:
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
        """Close them."""
        self.envs.close()

    def state_dict(self) -> Dict[str, Tensor]:
        """What the present episodes go on from: how they began and what was done in them.

        Raises:
            RuntimeError: before the first ``reset``.
            CannotResume: the environments are of a kind that cannot be resumed exactly.
        """
        if self._observation is None:
            raise RuntimeError("expected reset() before state_dict()")
        return {
            **vector_state(self.envs),
            "reset_next": torch.from_numpy(self._ended.copy()),
            **{f"observation.{i}": part.cpu() for i, part in enumerate(_parts(self._observation))},
        }

    def load_state_dict(self, state: Dict[str, Tensor]) -> Observation:
        """Go on from ``state`` by replaying its episodes; returns what is seen there.

        Raises:
            CannotResume: ``state`` is of other environments, or they did not come back where they were.
        """
        ended = state.get("reset_next", torch.zeros(0, dtype=torch.bool)).cpu().numpy().copy()
        observation = self._tensor(restore_vector(self.envs, state, ended))
        seen = {f"observation.{i}": part.cpu() for i, part in enumerate(_parts(observation))}
        if not all(name in state and torch.equal(part, state[name].cpu()) for name, part in seen.items()):
            raise CannotResume("env: expected it to come back where it was, which it did not; it cannot be resumed exactly")
        self._ended, self._observation = ended, observation
        return observation

    def _with_final(self, observation: Any, info: Dict[str, Any]) -> Any:
        """``observation`` with the last of the episodes that ended in place of the first of those that began."""
        both = zip(iterate(self.envs.observation_space, observation), info["final_obs"], info["_final_obs"], strict=True)
        last = [final if ended else new for new, final, ended in both]
        return side_by_side(self.observation_space, last)

    def _tensor(self, observation: Any) -> Observation:
        made = observation_tensor(observation)
        return made.to(self.device) if isinstance(made, Tensor) else tuple(part.to(self.device) for part in made)


def _parts(observation: Observation) -> tuple[Tensor, ...]:
    return (observation,) if isinstance(observation, Tensor) else observation
