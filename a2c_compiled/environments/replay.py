"""Resuming of gymnasium's environments: the current episode is replayed from its start with the recorded actions."""

import copy
import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from a2c_compiled.environments.checked import Checked
from a2c_compiled.environments.gymnasium_internals import cartpole_state, set_cartpole_state, set_reset_next

MAX_REPLAYED_STEPS = 100_000
"""An episode with more steps is not recorded further and cannot be resumed: its actions would fill the memory and every checkpoint."""


class CannotResume(ValueError):  # noqa: N818 - public name
    """The environments cannot be restored to the saved state. The caller can begin new episodes instead."""


class Replayable(Checked):
    """Records the start and the actions of the current episode, so that the episode can be replayed. Checks what ``env`` returns.

    The environment must depend on nothing but ``np_random`` and the actions. Wrappers with a state of their own, such as stacked frames,
    must be inside this wrapper. The actions are kept until the next reset, or until they are more than ``MAX_REPLAYED_STEPS``.

    Args:
        env: environment to wrap.

    Attributes:
        replayed: the observation at the end of the last replay.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "replayable": True}  # a vector environment has its first environment's metadata
        self.replayed: Any = None
        self._start: Dict[str, Any] = {}
        self._actions: Optional[List[Any]] = []  # None: too many

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Starts an episode. Records the seed, or without a seed the state of the random generator, and the options."""
        # With a seed, the earlier state of the generator has no effect and is not recorded.
        self._start = {"chance": self._generator_state() if seed is None else None, "seed": seed, "options": options}
        self._actions = []
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step and records ``action``."""
        if self._actions is not None:
            self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
            if len(self._actions) > MAX_REPLAYED_STEPS:
                self._actions = None
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)  # the next reset may overwrite it
        return observation, reward, terminated, truncated, info

    @property
    def episode(self) -> Tuple[str, Optional[List[Any]]]:
        """The current episode: JSON of its start and of the generator's current state, and the list of actions, None if there are too many.

        Assigning such a pair replays the episode.
        """
        return json.dumps({**self._start, "now": self._generator_state()}, default=str), self._actions

    @episode.setter
    def episode(self, episode: Tuple[str, Sequence[Any]]) -> None:
        text, actions = episode
        start = json.loads(text)
        if start["chance"] is not None:
            self.unwrapped.np_random.bit_generator.state = start["chance"]
        self.replayed, _ = self.reset(seed=start["seed"], options=start["options"])
        for action in actions:
            self.replayed, *_ = self.step(action)

    def _generator_state(self) -> Any:
        return self.unwrapped.np_random.bit_generator.state


def vector_state(envs: VectorEnv) -> Dict[str, Tensor]:
    """Returns the state of ``envs`` as tensors, for :func:`restore_vector`.

    Raises:
        CannotResume: ``envs`` is neither gymnasium's vectorised CartPole nor consists of :class:`Replayable` environments; or
            ``envs`` is an AsyncVectorEnv in which a reset takes a step; or an action is not one array; or an episode has more than
            ``MAX_REPLAYED_STEPS`` steps; or this version of gymnasium lacks an attribute of CartPole.
    """
    if isinstance(envs, CartPoleVectorEnv):
        chance = json.dumps(envs.np_random.bit_generator.state)
        try:
            arrays = cartpole_state(envs)
        except AttributeError as error:
            raise CannotResume(
                f"env: expected a version of gymnasium whose vectorised CartPole can be resumed exactly, got"
                f" {gymnasium.__version__} ({error})"
            ) from error
        return {"chance": _bytes(chance), **{name: torch.from_numpy(array) for name, array in arrays.items()}}
    envs = _checked(envs)
    texts, actions = zip(*envs.get_attr("episode"), strict=True)
    if None in actions:
        raise CannotResume(
            f"env: expected episodes of at most {MAX_REPLAYED_STEPS:,} steps, got a longer one; it cannot be resumed"
        )
    space = envs.single_action_space
    no_actions = np.zeros((0, *(space.shape or ())), space.dtype)
    return {
        "chance": _bytes(json.dumps(texts)),
        "actions": torch.from_numpy(np.concatenate([np.stack(taken) if taken else no_actions for taken in actions])),
        "lengths": torch.tensor([len(taken) for taken in actions]),
    }


def restore_vector(envs: VectorEnv, state: Dict[str, Tensor], ended: np.ndarray) -> Any:
    """Restores ``envs`` to ``state``, and returns the current observations.

    Args:
        envs: environments of the kind and number that were saved.
        state: result of :func:`vector_state`.
        ended: ``[N]``, bool: True if the next step of the environment is spent on a reset. Only used for a SyncVectorEnv.

    Raises:
        CannotResume: ``envs`` cannot be resumed, ``state`` belongs to other environments, or the replay draws other random numbers.
    """
    try:
        if isinstance(envs, CartPoleVectorEnv):
            return _restore_cartpole(envs, state)
        envs = _checked(envs)
        texts = json.loads(_text(state["chance"]))
        taken = state["actions"].cpu().numpy()
        actions = np.split(taken, state["lengths"].cumsum(0)[:-1].cpu().numpy())
        envs.set_attr("episode", list(zip(texts, actions, strict=True)))
        replay_matches = [text for text, _ in envs.get_attr("episode")] == texts
        if isinstance(envs, SyncVectorEnv):
            set_reset_next(envs, ended)
    except (EOFError, OSError):  # of a worker process
        raise
    except Exception as error:  # an environment may raise any error for actions that are not its own
        raise CannotResume(
            f"env: expected the saved state of {envs.num_envs} environments of this kind, got one with"
            f" {', '.join(sorted(state)) or 'no tensors'} ({error})"
        ) from error
    if not replay_matches:
        raise CannotResume(
            "env: expected all randomness to come from np_random, got a replay with other random draws; it cannot be resumed exactly"
        )
    return batched_observations(envs.single_observation_space, envs.get_attr("replayed"))


def batched_observations(space: gymnasium.Space, observations: Sequence[Any]) -> Any:
    """Batches the observations of single environments as a vector environment does."""
    batch: Any = create_empty_array(space, len(observations))
    return concatenate(space, observations, batch)


def _restore_cartpole(envs: Any, state: Dict[str, Tensor]) -> np.ndarray:
    """Writes ``state`` to gymnasium's vectorised CartPole, and returns the observations, ``[N, 4]``, float32."""
    if state["steps"].size(0) != envs.num_envs:
        raise ValueError(f"num_envs: expected {state['steps'].size(0)} environments, got {envs.num_envs}")
    envs.reset()
    envs.np_random.bit_generator.state = json.loads(_text(state["chance"]))
    set_cartpole_state(envs, {name: state[name].cpu().numpy() for name in ("physics", "steps", "ended")})
    return envs.state.T.astype(np.float32)


def _checked(envs: VectorEnv) -> SyncVectorEnv | AsyncVectorEnv:
    """Returns ``envs`` if their episodes can be replayed; otherwise raises CannotResume.

    The check precedes ``get_attr("episode")``, which would stop the worker processes of environments without that attribute.
    """
    reset_takes_a_step = envs.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP
    is_supported = isinstance(envs, SyncVectorEnv) or (isinstance(envs, AsyncVectorEnv) and not reset_takes_a_step)
    if not is_supported or not envs.metadata.get("replayable") or envs.single_action_space.shape is None:
        raise CannotResume(
            "env: expected environments that make_vector made with 'sync' or 'async', or a SyncVectorEnv of Replayable environments,"
            f" with actions of one array, got {type(envs).__name__}; they cannot be resumed exactly and begin new episodes"
        )
    return envs  # type: ignore[return-value]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(data: Tensor) -> str:
    return data.cpu().numpy().tobytes().decode()
