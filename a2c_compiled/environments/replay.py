"""Resuming of gymnasium's environments: the current episode is replayed from its start with the recorded actions."""

import copy
import json
from typing import Any, Dict, List, Sequence, Tuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from a2c_compiled.environments.gymnasium_internals import cartpole_state, set_cartpole_state, set_reset_next


class CannotResume(ValueError):  # noqa: N818 - public name
    """The environments cannot be restored to the saved state. The environments can begin new episodes."""


class Replayable(gymnasium.Wrapper):
    """Records the start and the actions of the current episode, so that it can be replayed.

    The environment must depend on nothing but ``np_random`` and the actions. Wrappers with a state of their own, such as stacked frames,
    must be inside this wrapper. The actions are kept until the next reset.

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
        self._actions: List[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Starts an episode and records how: its seed, or the generator's state, and the options."""
        # With a seed, the earlier state of the generator has no effect and is not recorded.
        self._start = {"chance": self._chance() if seed is None else None, "seed": seed, "options": options}
        self._actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step and records ``action``."""
        self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)  # the next reset may overwrite it
        return observation, reward, terminated, truncated, info

    @property
    def episode(self) -> Tuple[str, List[Any]]:
        """The current episode: JSON of its start and of the generator's current state, and the list of actions.

        Assigning such a pair replays the episode.
        """
        return json.dumps({**self._start, "now": self._chance()}, default=str), self._actions

    @episode.setter
    def episode(self, episode: Tuple[str, Sequence[Any]]) -> None:
        text, actions = episode
        start = json.loads(text)
        if start["chance"] is not None:
            self.unwrapped.np_random.bit_generator.state = start["chance"]
        self.replayed, _ = self.reset(seed=start["seed"], options=start["options"])
        for action in actions:
            self.replayed, *_ = self.step(action)

    def _chance(self) -> Any:
        return self.unwrapped.np_random.bit_generator.state


def vector_state(envs: VectorEnv) -> Dict[str, Tensor]:
    """Returns the state of ``envs`` as tensors, for :func:`restore_vector`.

    Raises:
        CannotResume: ``envs`` consists of environments other than :class:`Replayable`, and is not gymnasium's vectorised CartPole.
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
    space = envs.single_action_space
    none = np.zeros((0, *(space.shape or ())), space.dtype)
    return {
        "chance": _bytes(json.dumps(texts)),
        "actions": torch.from_numpy(np.concatenate([np.stack(taken) if taken else none for taken in actions])),
        "lengths": torch.tensor([len(taken) for taken in actions]),
    }


def restore_vector(envs: VectorEnv, state: Dict[str, Tensor], ended: np.ndarray) -> Any:
    """Restores ``envs`` to ``state``, and returns the observations there.

    Args:
        envs: environments of the kind and number that were saved.
        state: result of :func:`vector_state`.
        ended: ``[N]``, bool: the next step is spent on a reset.

    Raises:
        CannotResume: ``state`` belongs to other environments, or the replay does not end in ``state``.
    """
    try:
        if isinstance(envs, CartPoleVectorEnv):
            return _restore_cartpole(envs, state)
        envs = _checked(envs)
        texts = json.loads(_text(state["chance"]))
        taken = state["actions"].cpu().numpy()
        actions = np.split(taken, state["lengths"].cumsum(0)[:-1].cpu().numpy())
        envs.set_attr("episode", list(zip(texts, actions, strict=True)))
        came_back = [text for text, _ in envs.get_attr("episode")] == texts
        if isinstance(envs, SyncVectorEnv):
            set_reset_next(envs, ended)
    except (KeyError, ValueError, AttributeError) as error:
        raise CannotResume(
            f"env: expected the saved state of {envs.num_envs} environments of this kind, got one with"
            f" {', '.join(sorted(state)) or 'no tensors'} ({error})"
        ) from error
    if not came_back:
        raise CannotResume(
            "env: expected all randomness to come from np_random, got a replay with other random draws; it cannot be resumed exactly"
        )
    return side_by_side(envs.single_observation_space, envs.get_attr("replayed"))


def side_by_side(space: gymnasium.Space, observations: Sequence[Any]) -> Any:
    """Batches the observations of single environments as a vector environment does."""
    into: Any = create_empty_array(space, len(observations))
    return concatenate(space, observations, into)


def _restore_cartpole(envs: Any, state: Dict[str, Tensor]) -> np.ndarray:
    if state["steps"].size(0) != envs.num_envs:
        raise ValueError(f"num_envs: expected {state['steps'].size(0)} environments, got {envs.num_envs}")
    envs.reset()
    envs.np_random.bit_generator.state = json.loads(_text(state["chance"]))
    set_cartpole_state(envs, {name: state[name].cpu().numpy() for name in ("physics", "steps", "ended")})
    return envs.state.T.astype(np.float32)


def _checked(envs: VectorEnv) -> SyncVectorEnv | AsyncVectorEnv:
    """Returns ``envs`` if they can be replayed.

    The check precedes ``get_attr("episode")``, which would stop the worker processes of environments without that attribute.
    """
    resets_in_a_step = envs.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP
    fit = isinstance(envs, SyncVectorEnv) or (isinstance(envs, AsyncVectorEnv) and not resets_in_a_step)
    if not fit or not envs.metadata.get("replayable") or envs.single_action_space.shape is None:
        raise CannotResume(
            "env: expected environments that make_vector made with 'sync' or 'async', or a SyncVectorEnv of Replayable environments,"
            f" with actions of one array, got {type(envs).__name__}; they cannot be resumed exactly and begin new episodes"
        )
    return envs  # type: ignore[return-value]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(data: Tensor) -> str:
    return data.cpu().numpy().tobytes().decode()
