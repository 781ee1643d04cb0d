"""Rollouts from environments."""

from typing import Any, Callable, Dict, List, Optional, Union

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from a2c_compiled._tensor_groups import group_of, prefixed
from a2c_compiled.environments import Environments, GymnasiumEnvironments, TensorEnvironments
from a2c_compiled.environments.replay import CannotResume
from a2c_compiled.losses import A2CLoss
from a2c_compiled.rollouts.acting import Acted, act, answer
from a2c_compiled.rollouts.device_rollout import DeviceRollout
from a2c_compiled.rollouts.episode_returns import EpisodeReturns
from a2c_compiled.rollouts.hidden_state import HiddenStates
from a2c_compiled.update.compilation import compiled
from a2c_compiled.update.rollout import Rollout


class RolloutCollector:
    """Steps environments with the policy of a loss, from where the last rollout ended.

    ``next_observation`` is the real final observation where an episode ended. Environments that spend a step of their own on the reset
    (gymnasium's NEXT_STEP) give a ``mask`` that leaves that step out. Behaviour log-probabilities and state values are recorded where
    the loss needs them. Observations of recurrent networks are tuples with their hidden states, see :mod:`a2c_compiled.recurrent`.

    Environments written in torch and a policy without memory are stepped as one graph for each rollout
    (:class:`~a2c_compiled.rollouts.device_rollout.DeviceRollout`); elsewhere the policy is one call a step.

    Args:
        envs: a gymnasium vector environment with autoreset mode SAME_STEP or NEXT_STEP, or any
            :class:`~a2c_compiled.environments.Environments` on the device of the loss.
        loss: whose actor network and distribution act.
        num_steps: length of a rollout.
        seed: of the first reset.
        compile: compile what acts.

    Attributes:
        episodes: returns and lengths of the episodes that ended; whoever reads them takes them.

    Raises:
        ValueError: the environments do not reset themselves.
    """

    def __init__(
        self,
        envs: Union[VectorEnv, Environments],
        loss: A2CLoss,
        num_steps: int,
        seed: Optional[int] = None,
        compile: bool = False,
    ) -> None:
        device = loss.entropy_coef.device
        self.envs: Environments = GymnasiumEnvironments(envs, device) if isinstance(envs, VectorEnv) else envs
        self.loss = loss
        self.num_steps = num_steps
        self.episodes = EpisodeReturns(self.envs.num_envs, device)
        acting_and_judging = nn.ModuleList([loss.actor_network, loss.critic_network])  # a target's cells remember nothing here
        self._hidden_states = HiddenStates(acting_and_judging, self.envs.num_envs, device)
        self._whole: Optional[DeviceRollout] = None
        if isinstance(self.envs, TensorEnvironments) and self._hidden_states.is_empty():
            self._whole = DeviceRollout(self.envs, loss, compile)
        self._act: Callable[[A2CLoss, Any], Acted] = compiled(act) if compile else act
        self._observation: Any = self.envs.reset(seed)

    @property
    def returns(self) -> List[float]:
        """Undiscounted returns of the episodes that ended since this was last asked for."""
        return self.episodes.take()[0]

    @torch.no_grad()
    def collect(self) -> Rollout:
        """The next ``num_steps`` steps of every environment."""
        if self._whole is not None:
            self._observation, rollout = self._whole(self._observation, self.num_steps)
        else:
            rollout = self._step_by_step()
        self.episodes.record(rollout.reward, rollout.done, rollout.mask)
        return rollout

    def state_dict(self) -> Optional[Dict[str, Tensor]]:
        """Where the environments and the policy's memory are; None where the environments cannot say."""
        if not hasattr(self.envs, "state_dict"):
            return None
        try:
            envs = self.envs.state_dict()
        except CannotResume:
            return None
        return prefixed(envs=envs, memory=self._hidden_states.state_dict(), episodes={"running": self.episodes.running})

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Go on from there.

        Raises:
            CannotResume: the environments do not come back where they were.
        """
        self._observation = self.envs.load_state_dict(group_of(state, "envs"))  # type: ignore[attr-defined]
        self._hidden_states.load_state_dict(group_of(state, "memory"))
        self.episodes.running = state["episodes.running"].to(self.episodes.running.device)

    def begin_episodes(self, seed: int) -> None:
        """New episodes everywhere."""
        self._observation = self.envs.reset(seed)
        self._hidden_states.load_state_dict({})
        self.episodes.running.zero_()

    def _step_by_step(self) -> Rollout:
        tape = _Tape(self.num_steps)
        for t in range(self.num_steps):
            seen = self._observation
            action, log_prob, state_value = self._answer(seen)
            step = self.envs.step(action)
            done = step.terminated | step.truncated
            # The step that a reset takes belongs to no episode.
            self._hidden_states.advance(seen, done if step.counted is None else done | ~step.counted)
            self._observation = step.observation
            following = step.observation if step.final_observation is None else step.final_observation
            tape.write(t, "observation", seen)
            tape.write(t, "action", action)
            tape.write(t, "reward", step.reward)
            tape.write(t, "next_observation", following)
            tape.write(t, "done", done)
            tape.write(t, "terminated", step.terminated)
            tape.write(t, "log_prob", log_prob)
            tape.write(t, "state_value", state_value)
            tape.write(t, "mask", step.counted)
        columns = tape.columns
        before_and_after = self._hidden_states.observations(columns.pop("observation"), columns.pop("next_observation"))
        return Rollout(observation=before_and_after[0], next_observation=before_and_after[1], **columns)

    def _answer(self, observation: Any) -> Acted:
        if self._hidden_states.is_empty():
            return self._act(self.loss, observation)
        value = self._hidden_states.ask(self.loss.critic_network, observation) if self.loss.reads_state_value else None
        return answer(self.loss, self._hidden_states.ask(self.loss.actor_network, observation), value)


class _Tape:
    """Tensors, or tuples of them, ``[T, ...]``: allocated at the first step, written row by row."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.columns: Dict[str, Any] = {}

    def write(self, t: int, name: str, value: Any) -> None:
        """Put ``value`` in the row ``t`` of a column; there is no column of None."""
        if value is None:
            return
        if t == 0:
            new = [x.new_empty((self._length, *x.shape)) for x in _parts(value)]
            self.columns[name] = new[0] if isinstance(value, Tensor) else tuple(new)
        for column, x in zip(_parts(self.columns[name]), _parts(value), strict=True):
            column[t] = x


def _parts(value: Any) -> Any:
    return (value,) if isinstance(value, Tensor) else value
