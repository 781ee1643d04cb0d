"""Gymnasium's environments made to go on where they were: the present episode is played again."""

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


class CannotResume(ValueError):  # noqa: N818
    """These environments cannot go on exactly where they were; they can begin new episodes."""


class Replayable(gymnasium.Wrapper):
    """Remembers how the present episode began and what was done in it, which is all that replaying takes.

    Serves environments whose future depends on ``np_random`` and the actions alone. It stands outside of wrappers that remember
    something themselves, such as stacked frames. Actions are kept for as long as the episode lasts.

    Attributes:
        replayed: the observation that the last replay ended with.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "replayable": True}  # vector environments show their first environment's
        self.replayed: Any = None
        self._start: Dict[str, Any] = {}
        self._actions: List[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        # A seed makes what came before it irrelevant.
        self._start = {"chance": self._chance() if seed is None else None, "seed": seed, "options": options}
        self._actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Go on with it."""
        self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)  # the reset that follows may write into it
        return observation, reward, terminated, truncated, info

    @property
    def episode(self) -> Tuple[str, List[Any]]:
        """JSON of how the episode began and of the generator's present state, and the actions. Assigning it replays the episode."""
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
    """What ``envs`` go on from.

    Raises:
        CannotResume: they are neither made of :class:`Replayable` environments nor CartPole's own vectorised version.
    """
    if isinstance(envs, CartPoleVectorEnv):
        chance = json.dumps(envs.np_random.bit_generator.state)
        try:
            arrays = cartpole_state(envs)
        except AttributeError as error:
            raise CannotResume(
                f"env: expected its state to be where it is known to be ({error}); it cannot be resumed exactly"
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
    """Bring ``envs`` to ``state``, and return what is observed there.

    Args:
        envs: as those that :func:`vector_state` was asked about.
        state: what it answered.
        ended: bool, ``[N]``: whose next step is spent on a reset.

    Raises:
        CannotResume: ``state`` is not of such environments, or does not come back.
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
        raise CannotResume(f"env: expected a state of {envs.num_envs} such environments, got another ({error})") from error
    if not came_back:
        raise CannotResume(
            "env: expected its chance to depend on np_random alone, which it does not; it cannot be resumed exactly"
        )
    return side_by_side(envs.single_observation_space, envs.get_attr("replayed"))


def side_by_side(space: gymnasium.Space, observations: Sequence[Any]) -> Any:
    """The observations of single environments as a vector environment shows them."""
    into: Any = create_empty_array(space, len(observations))
    return concatenate(space, observations, into)


def _restore_cartpole(envs: Any, state: Dict[str, Tensor]) -> np.ndarray:
    if state["steps"].size(0) != envs.num_envs:
        raise ValueError(f"{state['steps'].size(0)} environments")
    envs.reset()
    envs.np_random.bit_generator.state = json.loads(_text(state["chance"]))
    set_cartpole_state(envs, {name: state[name].cpu().numpy() for name in ("physics", "steps", "ended")})
    return envs.state.T.astype(np.float32)


def _checked(envs: VectorEnv) -> SyncVectorEnv | AsyncVectorEnv:
    """Workers of unfit environments would not survive the question."""
    resets_in_a_step = envs.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP
    fit = isinstance(envs, SyncVectorEnv) or (isinstance(envs, AsyncVectorEnv) and not resets_in_a_step)
    if not fit or not envs.metadata.get("replayable") or envs.single_action_space.shape is None:
        raise CannotResume(
            "env: expected environments that make_vector made one after the other or in processes, or a SyncVectorEnv of Replayable ones,"
            f" with actions of one array, got {type(envs).__name__}; they cannot be resumed exactly and begin new episodes"
        )
    return envs  # type: ignore[return-value]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(data: Tensor) -> str:
    return data.cpu().numpy().tobytes().decode()
