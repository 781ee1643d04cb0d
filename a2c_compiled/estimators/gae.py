"""Generalized advantage estimation."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._coefficients import UNIT
from a2c_compiled._precision import widen
from a2c_compiled.estimators.base import ValueEstimator
from a2c_compiled.functional import ValueEstimate, generalized_advantage_estimate, standardize
from a2c_compiled.functional.arguments import check_steps, coefficient


class GAE(ValueEstimator):
    """:func:`~a2c_compiled.functional.generalized_advantage_estimate` as a module.

    Args:
        gamma: discount.
        lmbda: weight of the longer returns, from 0 to 1.
        average_gae: standardise the advantage over the batch (smallest standard deviation 1e-4).
        time_dim: the dimension of time.
        auto_reset_env: for environments that give, as the next observation of a truncated step, the first one of the next
            episode: bootstrap such a step from its own value, ``reward + gamma * V(s)``, and take every ``done`` as terminated.
        differentiable: let gradients pass.
    """

    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_gae: bool = False,
        time_dim: int = -2,
        auto_reset_env: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim)
        self.register_coefficient("lmbda", lmbda, UNIT)
        self.average_gae = average_gae
        self.auto_reset_env = auto_reset_env

    def forward(
        self,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Advantage and value target, both of the shape of ``reward``."""
        value, reward = self.source(state_value), self.source(reward)
        if self.auto_reset_env and terminated is not None:
            check_steps(reward, {"done": done}, {"state_value": state_value}, terminated)
            own_value = coefficient("gamma", self.gamma, reward) * widen(value)
            reward = (widen(reward) + own_value.masked_fill(terminated | ~done, 0.0)).to(reward.dtype)
            terminated = done
        advantage, value_target = generalized_advantage_estimate(
            self.gamma, self.lmbda, value, self.source(next_state_value), reward, done, terminated, self.time_dim
        )
        if self.average_gae:
            advantage = standardize(advantage, 1e-4)
        return ValueEstimate(advantage, value_target)
