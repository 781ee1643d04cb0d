"""Rollouts from a gymnasium vector environment."""

from typing import List, Optional

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.environments import observation_tensor
from a2c_compiled.training.memory import Memory
from a2c_compiled.training.rollout import Rollout


class RolloutCollector:
    """Steps a vector environment with the policy of a loss, from where the last rollout ended.

    ``next_observation`` is the real final observation where an episode ended. Environments that spend a step of their own on the reset
    (gymnasium's NEXT_STEP) give a ``mask`` that leaves that step out. Behaviour log-probabilities and state values are recorded where
    the loss needs them. Observations of recurrent networks are tuples with their hidden states, see :mod:`a2c_compiled.recurrent`.

    Args:
        envs: with autoreset mode SAME_STEP or NEXT_STEP.
        loss: whose actor network and distribution act.
        num_steps: length of a rollout.
        seed: of the first reset.

    Attributes:
        returns: undiscounted returns of the episodes that ended during the last rollout.

    Raises:
        ValueError: the environments do not reset themselves.
    """

    def __init__(self, envs: VectorEnv, loss: A2CLoss, num_steps: int, seed: Optional[int] = None) -> None:
        self.envs = envs
        self.loss = loss
        self.num_steps = num_steps
        self.returns: List[float] = []
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(f"envs: expected autoreset mode SAME_STEP or NEXT_STEP, got {mode}")
        self._resets_in_a_step = mode == AutoresetMode.NEXT_STEP
        self._observation, _ = envs.reset(seed=seed)
        self._ended = np.zeros(envs.num_envs, dtype=bool)
        self._return = np.zeros(envs.num_envs)
        acting_and_judging = nn.ModuleList([loss.actor_network, loss.critic_network])  # a target's cells remember nothing here
        self._memory = Memory(acting_and_judging, envs.num_envs, loss.entropy_coef.device)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """The next ``num_steps`` steps of every environment."""
        observations: List[Tensor] = []
        next_observations: List[Tensor] = []
        params: List[Tensor] = []
        actions: List[Tensor] = []
        rewards, dones, terminations, counted = (np.empty((self.num_steps, self.envs.num_envs), d) for d in "f???")
        self.returns = []
        device = self.loss.entropy_coef.device
        for t in range(self.num_steps):
            observations.append(observation_tensor(self._observation).to(device))
            params.append(self._memory.ask(self.loss.actor_network, observations[-1]))
            actions.append(self.loss.distribution.sample(params[-1]))
            counted[t] = ~self._ended
            self._observation, rewards[t], terminations[t], truncated, info = self.envs.step(actions[-1].cpu().numpy())
            dones[t] = terminations[t] | truncated
            # The step that a reset takes belongs to no episode.
            self._memory.advance(observations[-1], torch.from_numpy(dones[t] | ~counted[t]).to(device))
            next_observations.append(observation_tensor(self._final_observation(info)))
            self._record_returns(rewards[t], dones[t])
            if self._resets_in_a_step:
                self._ended = dones[t].copy()

        observation, next_observation = self._memory.observations(
            torch.stack(observations), torch.stack(next_observations).to(device)
        )
        action = torch.stack(actions)
        reward, done, terminated, mask = (torch.from_numpy(x).to(device) for x in (rewards, dones, terminations, counted))
        log_prob = state_value = None
        if self.loss.reads_log_prob:
            log_prob = self.loss.distribution.log_prob(torch.stack(params), action)
        if self.loss.clip_value is not None:
            state_value = self.loss.critic_network(observation).reshape(reward.shape)
        return Rollout(
            observation,
            action,
            reward,
            next_observation,
            done,
            terminated,
            log_prob,
            state_value,
            mask if self._resets_in_a_step else None,
        )

    def _final_observation(self, info: dict) -> np.ndarray:
        if self._resets_in_a_step or "final_obs" not in info:
            return self._observation
        final = self._observation.copy()
        for i in np.flatnonzero(info["_final_obs"]):
            final[i] = info["final_obs"][i]
        return final

    def _record_returns(self, reward: np.ndarray, done: np.ndarray) -> None:
        self._return += reward
        self.returns += self._return[done].tolist()
        self._return[done] = 0.0
