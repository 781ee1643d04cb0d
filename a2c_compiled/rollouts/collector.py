"""Collects rollouts from environments."""

from typing import Any, Callable, Dict, List, Optional, Union

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from a2c_compiled._environment_action import environment_action
from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import described, flag, integer
from a2c_compiled.environments import Environments, GymnasiumEnvironments, TensorEnvironments
from a2c_compiled.environments.protocol import vector_remedy
from a2c_compiled.environments.replay import CannotResume
from a2c_compiled.losses import A2CLoss
from a2c_compiled.rollouts.acting import PolicyOutput, act
from a2c_compiled.rollouts.device_rollout import DeviceRollout
from a2c_compiled.rollouts.episode_returns import EpisodeReturns
from a2c_compiled.rollouts.hidden_state import HiddenState, advanced, with_hidden_states
from a2c_compiled.rollouts.tensor_groups import group_of, prefixed
from a2c_compiled.update.compilation import CompiledFunction
from a2c_compiled.update.rollout import Rollout, mapped


class RolloutCollector:
    """Steps environments with the policy of a loss and returns rollouts. Each rollout starts where the previous one ended.

    * ``next_observation`` is the last observation of the episode at a step that ends an episode, not the first of the next episode: in
      gymnasium's autoreset mode SAME_STEP ``info["final_obs"]``, in mode NEXT_STEP the observation that ``step`` returns.
    * The mode NEXT_STEP spends one step on each reset. The rollout's ``mask`` is False at these steps.
    * Observations of gymnasium with dtype float64 become float32. Networks get observations as they are: :class:`ObservationNorm
      <a2c_compiled.networks.observation_norm.ObservationNorm>` as their first layer normalises them. ``docs/own_loop.md`` is a whole loop.
    * ``action`` is the action that the distribution drew. The environments get it in the dtype of their action space, and clipped in a
      Box, see :class:`~a2c_compiled.environments.EnvironmentAction`.
    * ``log_prob`` and ``state_value`` are recorded only if the loss reads them.
    * With recurrent networks, observations are tuples that contain the hidden states, see :mod:`a2c_compiled.recurrent`.

    If the environments are written in torch, a rollout is one graph
    (:class:`~a2c_compiled.rollouts.device_rollout.DeviceRollout`). Otherwise the policy is called once for each step.

    Args:
        envs: a gymnasium vector environment with autoreset mode SAME_STEP or NEXT_STEP, or any
            :class:`~a2c_compiled.environments.Environments` on the device of the loss.
        loss: loss whose actor network and distribution sample the actions.
        num_steps: ``T``, the number of steps in a rollout.
        seed: seed of the first reset; None sets no seed.
        compile: whether to compile the policy, or, with environments written in torch, the whole rollout. Errors are those of eager mode.
        last_next_observation: whether ``next_observation`` has the observation after the last step alone, ``[1, N, ...]``. The loss then
            computes the critic on ``T + 1`` observations, not on ``2 T``. The environments must have autoreset mode NEXT_STEP, and the
            networks no hidden states.

    Attributes:
        episodes: returns and lengths of the episodes that ended. ``episodes.take()`` returns and removes them.

    Raises:
        ValueError: ``envs`` is a gymnasium vector environment with another autoreset mode, or ``num_steps`` is less than 1, or the
            action space is a Box of integers or bools, or has discrete values that do not start at 0, or
            ``last_next_observation`` is True with other environments or networks.
        TypeError: an argument has a wrong type.
    """

    def __init__(
        self,
        envs: Union[VectorEnv, Environments],
        loss: A2CLoss,
        num_steps: int,
        seed: Optional[int] = None,
        compile: bool = False,
        last_next_observation: bool = False,
    ) -> None:
        if not isinstance(loss, A2CLoss):
            raise TypeError(f"loss: expected an A2CLoss, got {described(loss)}")
        if not isinstance(envs, (VectorEnv, Environments)):
            raise TypeError(f"envs: expected a gymnasium VectorEnv or Environments, got {described(envs)}{vector_remedy(envs)}")
        seed = None if seed is None else integer("seed", seed)
        compile = flag("compile", compile)
        device = loss.entropy_coef.device
        self.envs: Environments = GymnasiumEnvironments(envs, device) if isinstance(envs, VectorEnv) else envs
        self._environment_action = environment_action(self.envs.action_space, loss.distribution, loss.actor_network)
        self.loss = loss
        self.num_steps = positive_int("num_steps", num_steps)
        self.episodes = EpisodeReturns(self.envs.num_envs, device)
        self._hidden_state = self._initial_hidden_state()
        self._device_rollout: Optional[DeviceRollout] = None
        if isinstance(self.envs, TensorEnvironments):
            self._device_rollout = DeviceRollout(self.envs, loss, compile, self._environment_action)
        self._last_next_observation = flag("last_next_observation", last_next_observation)
        takes_step = isinstance(self.envs, GymnasiumEnvironments) and self.envs.reset_takes_a_step
        if self._last_next_observation and not (takes_step and self._hidden_state is None):
            raise ValueError(
                "last_next_observation: expected False unless the environments have autoreset mode NEXT_STEP and the networks no hidden"
                " states, got True"
            )
        self._act: Callable[..., PolicyOutput] = CompiledFunction(act) if compile else act
        self._observation: Any = self.envs.reset(seed)

    @property
    def returns(self) -> List[float]:
        """Undiscounted returns of the episodes that ended since the last read of this property or the last ``episodes.take()``."""
        return self.episodes.take()[0]

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Steps every environment ``num_steps`` times.

        Returns:
            The rollout. Its tensors have shapes ``[T, N]`` and ``[T, N, ...]``. Dtypes: see :class:`~a2c_compiled.Rollout`.
        """
        if self._device_rollout is not None:
            start = self._observation, self._hidden_state
            self._observation, self._hidden_state, rollout = self._device_rollout(*start, self.num_steps)
        else:
            rollout = self._step_by_step()
        self.episodes.record(rollout.reward, rollout.done, rollout.mask)
        return rollout

    def state_dict(self) -> Optional[Dict[str, Tensor]]:
        """Returns the state of environments, hidden states and running returns. Returns None if the environments cannot be resumed.

        Returns:
            By name: ``envs.*``, the tensors of the environments' ``state_dict()``; ``episodes.running``, ``[2, N]``,
            float64: return and length so far of the current episodes. With recurrent networks also ``memory.hidden``, ``[N, H]``, floating
            point, and ``memory.start``, ``[N]``, bool: the hidden states, and whether the next step begins an episode.
        """
        if not hasattr(self.envs, "state_dict"):
            return None
        try:
            envs = self.envs.state_dict()
        except CannotResume:
            return None
        memory = None if self._hidden_state is None else self._hidden_state._asdict()
        return prefixed(envs=envs, memory=memory, episodes={"running": self.episodes.running})

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned. The next rollout continues the saved episodes.

        Args:
            state: shapes and dtypes as in :meth:`state_dict`.

        Raises:
            CannotResume: the environments cannot be restored to this state.
        """
        self._observation = self.envs.load_state_dict(group_of(state, "envs"))  # type: ignore[attr-defined]
        saved = group_of(state, "memory")
        if self._hidden_state is not None:
            self._hidden_state = HiddenState(*(saved[name].to(x.device) for name, x in self._hidden_state._asdict().items()))
        self.episodes.running = state["episodes.running"].to(self.episodes.running.device)

    def begin_episodes(self, seed: int) -> None:
        """Resets every environment with ``seed``, and sets the hidden states and running returns to zero."""
        self._observation = self.envs.reset(seed)
        self._hidden_state = self._initial_hidden_state()
        self.episodes.running.zero_()

    def _initial_hidden_state(self) -> Optional[HiddenState]:
        """Returns the hidden state at the first step of an episode.

        Target networks have no hidden states of their own: they read those that are recorded for actor and critic.
        """
        networks = [self.loss.actor_network, self.loss.critic_network]
        return HiddenState.initial(networks, self.envs.num_envs, self.loss.entropy_coef.device)

    def _step_by_step(self) -> Rollout:
        """Collects a rollout with one call of the policy for each step."""
        buffer = _RolloutBuffer(self.num_steps)
        for t in range(self.num_steps):
            observation = self._observation
            state = self._hidden_state
            action, log_prob, state_value, hidden = self._act(self.loss, observation, None if state is None else state.hidden)
            step = self.envs.step(action if self._environment_action is None else self._environment_action(action))
            done = step.terminated | step.truncated
            # A step spent on a reset belongs to no episode, so the hidden state is zeroed after it too.
            is_last = done if step.counted is None else done | ~step.counted
            self._hidden_state, hidden_fields = advanced(state, hidden, is_last)
            for name, value in hidden_fields.items():
                buffer.write(t, name, value)
            self._observation = step.observation
            next_observation = step.observation if step.final_observation is None else step.final_observation
            buffer.write(t, "observation", observation)
            buffer.write(t, "action", action)
            buffer.write(t, "reward", step.reward)
            if not self._last_next_observation:
                buffer.write(t, "next_observation", next_observation)
            buffer.write(t, "done", done)
            buffer.write(t, "terminated", step.terminated)
            buffer.write(t, "log_prob", log_prob)
            buffer.write(t, "state_value", state_value)
            buffer.write(t, "mask", step.counted)
        if self._last_next_observation:
            buffer.columns["next_observation"] = mapped(lambda part: part.unsqueeze(0), self._observation)
        return Rollout(**with_hidden_states(buffer.columns))


class _RolloutBuffer:
    """Named columns with shape ``[T, ...]``. Each column is a tensor or a tuple of tensors, allocated by the first :meth:`write`."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.columns: Dict[str, Any] = {}

    def write(self, t: int, name: str, value: Any) -> None:
        """Writes ``value`` to row ``t`` of column ``name``; does nothing if ``value`` is None."""
        if value is None:
            return
        if t == 0:
            new = [x.new_empty((self._length, *x.shape)) for x in _parts(value)]
            self.columns[name] = new[0] if isinstance(value, Tensor) else tuple(new)
        for column, x in zip(_parts(self.columns[name]), _parts(value), strict=True):
            column[t] = x


def _parts(value: Any) -> Any:
    """Returns the tensors of an observation: ``value`` itself if it is a tuple, else a tuple that contains ``value``."""
    return (value,) if isinstance(value, Tensor) else value
