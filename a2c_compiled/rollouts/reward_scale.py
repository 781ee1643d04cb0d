"""Rewards brought to one scale by statistics that run along with training."""

from typing import Any, Optional

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled.networks.observation_norm import RunningMoments
from a2c_compiled.rollouts.episode_returns import running_return


class RewardScale(CoefficientModule):
    r"""Rewards divided by the standard deviation of the discounted return: :math:`\text{clip}(r / \sqrt{v + \epsilon})`.

    :math:`v` is the variance of all :math:`R_t = r_t + \gamma R_{t-1}` so far, begun anew with each episode.

    Args:
        num_envs: environments side by side.
        gamma: discount.
        clip: largest magnitude of what comes out.
        epsilon: added to the variance.

    Source: Engstrom et al., Implementation Matters in Deep Policy Gradients, 2020.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float = 0.99, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.gamma = gamma
        self.clip = float(clip)
        self.epsilon = float(epsilon)
        self.moments = RunningMoments([1])
        self.register_buffer("running", torch.zeros(num_envs, dtype=torch.float64))

    @torch.no_grad()
    def scale(self, reward: Tensor, done: Tensor, mask: Optional[Tensor] = None, process_group: Any = None) -> Tensor:
        """The rewards of the next rollout, which are taken into account first.

        Args:
            reward: ``[T, N]``.
            done: bool, ``[T, N]``: an episode ended with this step.
            mask: bool, ``[T, N]``: which steps count; None for all.
            process_group: as of :meth:`RunningMoments.update`.

        Raises:
            ValueError: a shape does not fit.
        """
        if reward.dim() != 2 or reward.size(0) == 0 or reward.size(1) != self.running.numel():
            raise ValueError(
                f"reward: expected shape [T, {self.running.numel()}] with a step or more, got {list(reward.shape)}"
            )
        if done.shape != reward.shape:
            raise ValueError(f"done: expected shape {list(reward.shape)}, got {list(done.shape)}")
        returns = running_return(reward.double(), done, self.running, self.gamma)
        self.moments.update(returns.unsqueeze(-1), mask, process_group)
        self.running.copy_(returns[-1].masked_fill(done[-1], 0.0))
        deviation = (self.moments.var + self.epsilon).sqrt()
        return (reward / deviation).clamp(-self.clip, self.clip).to(reward.dtype)
