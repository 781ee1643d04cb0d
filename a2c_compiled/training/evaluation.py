"""Evaluation of policies: returns and lengths of episodes."""

from typing import Any, Callable, Dict, NamedTuple, Optional

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from a2c_compiled._hyperparameters import check_seed
from a2c_compiled.environments import EnvironmentAction, EnvironmentSource, make_vector, observation_tensor
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.batch_apply import explained
from a2c_compiled.recurrent import initial_hidden, is_recurrent, run_step

EVALUATION_SEED = 10_000
"""Default seed of an evaluation, see :func:`play`."""

MAX_STEPS = 27_000
"""Largest number of steps of an episode in an evaluation, because some episodes never end.

This is half an hour of an Atari game, at four frames a step."""

MAX_ENVIRONMENTS = 100
"""Largest number of environments that are stepped together in an evaluation."""

Policy = Callable[[Any], np.ndarray]
"""Maps a batch of observations of a gymnasium vector environment to a batch of actions. The environment gets them as
:class:`~a2c_compiled.environments.EnvironmentAction` maps them. A policy with hidden states also has a method ``reset()``. Evaluations call
it when new episodes begin."""


class Episodes(NamedTuple):
    """Result of an evaluation.

    Attributes:
        returns: ``[episodes]``, float64: undiscounted returns.
        lengths: ``[episodes]``, int64: lengths in steps.
    """

    returns: np.ndarray
    lengths: np.ndarray


class NetworkPolicy:
    """The policy of a loss, greedy or sampled. It keeps the hidden states of recurrent networks from one call to the next.

    Args:
        loss: loss with the actor network and the distribution.
        sampled: whether to sample actions with torch's global generator. False takes the mode of the distribution.
    """

    def __init__(self, loss: A2CLoss, sampled: bool = False) -> None:
        self._actor = loss.actor_network
        self._select_action = loss.distribution.sample if sampled else loss.distribution.mode
        self._device = loss.entropy_coef.device
        # As in training, the hidden state concatenates the states of the cells of actor and critic.
        self._networks = nn.ModuleList([loss.actor_network, loss.critic_network])
        self._hidden: Optional[Tensor] = None

    def reset(self) -> None:
        """Sets the hidden states to zero."""
        self._hidden = None

    @torch.no_grad()
    def __call__(self, observation: Any) -> np.ndarray:
        """Returns actions for a batch of observations, ``[N, ...]``.

        Result: ``[N, *event]``, with ``*event`` the shape of one action; dtype of the distribution's actions.
        """
        x: Any = observation_tensor(observation)
        x = x.to(self._device) if isinstance(x, Tensor) else tuple(part.to(self._device) for part in x)
        params = self._recurrent_params(x) if is_recurrent(self._networks) else self._params(x)
        return self._select_action(params).cpu().numpy()

    def _params(self, x: Any) -> Tensor:
        """Returns the actor's output for ``x``."""
        return explained("actor_network", self._actor, self._actor, x, leading_dims=1)

    def _recurrent_params(self, x: Tensor) -> Tensor:
        """Returns the actor's output for ``x``, and advances the actor's hidden states."""
        if self._hidden is None:
            self._hidden = initial_hidden(self._networks, len(x))
        (params,), self._hidden = run_step([self._actor], x, self._hidden)
        return params


def greedy_policy(loss: A2CLoss) -> NetworkPolicy:
    """Returns the greedy policy of ``loss``, which takes the mode of the distribution."""
    return NetworkPolicy(loss)


def evaluate(
    policy: Policy, env_id: EnvironmentSource, episodes: int = 100, seed: int = EVALUATION_SEED, **env_options: Any
) -> np.ndarray:
    """Returns the undiscounted returns of ``episodes`` episodes, ``[episodes]``, float64. Arguments and errors: see :func:`play`."""
    return play(policy, env_id, episodes, seed, **env_options).returns


def play(
    policy: Policy, env_id: EnvironmentSource, episodes: int = 100, seed: int = EVALUATION_SEED, **env_options: Any
) -> Episodes:
    """Plays one episode in each of ``episodes`` environments.

    Each environment counts once, so the result is not biased towards short episodes.

    Args:
        policy: maps observations to actions.
        env_id: what :func:`~a2c_compiled.environments.make_vector` makes the environments from.
        episodes: number of episodes.
        seed: seed of the first environment; environment ``i`` has the seed ``seed + i``. gymnasium's own vectorised versions, such as
            CartPole-v1's, draw the starts of up to 100 environments from one generator, which has the seed of the first of these.
        env_options: options of :func:`~a2c_compiled.environments.make_vector`: ``frame_stack`` and options of the environment.

    Raises:
        ValueError: the environment cannot be made here, ``episodes`` is less than 1, or ``seed`` is negative or has more than 63 bits.
        TypeError: ``seed`` is not an integer.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}")
    check_seed("seed", seed)
    played = []
    for start in range(0, episodes, MAX_ENVIRONMENTS):
        envs = make_vector(env_id, min(MAX_ENVIRONMENTS, episodes - start), seed=seed + start, **env_options)
        try:
            played.append(_first_episodes(policy, envs, seed + start))
        finally:
            envs.close()
    return Episodes(*(np.concatenate(parts) for parts in zip(*played, strict=True)))


def summary(episodes: Episodes) -> Dict[str, Dict[str, float]]:
    """Computes mean, standard deviation, minimum and maximum of the episodes' ``return`` and ``length``."""
    columns = {"return": episodes.returns, "length": episodes.lengths}
    return {
        name: {"mean": float(x.mean()), "std": float(x.std()), "min": float(x.min()), "max": float(x.max())}
        for name, x in columns.items()
    }


def reset_policy(policy: Policy) -> None:
    """Calls ``policy.reset()`` if the policy has this method."""
    reset = getattr(policy, "reset", None)
    if reset is not None:
        reset()


def _first_episodes(policy: Policy, envs: VectorEnv, seed: int) -> Episodes:
    """Plays until every environment has finished its first episode, or for ``MAX_STEPS`` steps."""
    reset_policy(policy)
    environment_action = EnvironmentAction(envs.single_action_space)
    observation, _ = envs.reset(seed=seed)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    running = np.ones(envs.num_envs, dtype=bool)
    for _ in range(MAX_STEPS):
        observation, reward, terminated, truncated, _ = envs.step(environment_action.of_array(policy(observation)))
        returns[running] += reward[running]
        lengths[running] += 1
        running &= ~(terminated | truncated)
        if not running.any():
            break
    return Episodes(returns, lengths)
