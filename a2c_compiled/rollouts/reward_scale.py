"""Scaling of rewards by running statistics."""

from typing import Any, Optional

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import NOT_NEGATIVE, POSITIVE, UNIT, CoefficientModule, positive_int
from a2c_compiled._kinds import check_mask, check_tensor
from a2c_compiled.networks.observation_norm import RunningMoments
from a2c_compiled.rollouts.episode_returns import running_return


class RewardScale(CoefficientModule):
    r"""Divides rewards by the running standard deviation of the discounted return.

    .. math:: \text{clip}(r / \sqrt{v + \epsilon}), \quad R_t = r_t + \gamma (1 - d_{t-1}) R_{t-1}

    :math:`v` is the variance of :math:`R_t` over all steps so far. :math:`d_t` is true if an episode ends at step :math:`t`.

    Args:
        num_envs: ``N``, the number of environments.
        gamma: discount factor.
        clip: largest absolute value of the scaled rewards.
        epsilon: number added to the variance.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument is not a number.

    Attributes:
        running: ``[N]``, float64: discounted return so far of the current episodes.

    Source: Engstrom et al., Implementation Matters in Deep Policy Gradients, 2020.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float = 0.99, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.gamma = UNIT.number("gamma", gamma)
        self.clip = POSITIVE.number("clip", clip)
        self.epsilon = NOT_NEGATIVE.number("epsilon", epsilon)
        self.moments = RunningMoments([1])
        self.register_buffer("running", torch.zeros(positive_int("num_envs", num_envs), dtype=torch.float64))

    @torch.no_grad()
    def scale(self, reward: Tensor, done: Tensor, mask: Optional[Tensor] = None, process_group: Any = None) -> Tensor:
        """Updates the statistics with the rewards of a rollout, then returns the scaled rewards.

        Args:
            reward: ``[T, N]``, floating point.
            done: ``[T, N]``, bool: the episode terminated or was truncated.
            mask: ``[T, N]``, bool: False leaves a step out of the statistics. None uses all steps.
            process_group: see :meth:`~a2c_compiled.networks.observation_norm.RunningMoments.update`.

        Returns:
            The scaled rewards, shape and dtype of ``reward``.

        Raises:
            ValueError: ``reward`` has another number of environments or dimensions or no steps, or ``done`` or ``mask`` does not have the
                shape of ``reward``.
        """
        check_tensor("reward", reward)
        check_mask("done", done)
        if reward.dim() != 2 or reward.size(0) == 0 or reward.size(1) != self.running.numel():
            raise ValueError(
                f"reward: expected shape [T, {self.running.numel()}] with at least one step, got {list(reward.shape)}"
            )
        if done.shape != reward.shape:
            raise ValueError(f"done: expected shape {list(reward.shape)}, got {list(done.shape)}")
        returns = running_return(reward.double(), done, self.running, self.gamma)
        self.moments.update(returns.unsqueeze(-1), mask, process_group)
        self.running.copy_(returns[-1].masked_fill(done[-1], 0.0))
        return (reward / self.deviation).clamp(-self.clip, self.clip).to(reward.dtype)

    @property
    def deviation(self) -> Tensor:
        """The number by which rewards are divided: ``[1]``, float64."""
        return (self.moments.var + self.epsilon).sqrt()
