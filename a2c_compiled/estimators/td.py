"""Temporal-difference estimators: one step, to the end, lambda-weighted."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._coefficients import UNIT
from a2c_compiled._precision import widen
from a2c_compiled.estimators.base import ValueEstimator
from a2c_compiled.functional import (
    ValueEstimate,
    standardize,
    td0_return_estimate,
    td1_return_estimate,
    td_lambda_return_estimate,
)
from a2c_compiled.functional.arguments import check_steps


class TDEstimator(ValueEstimator):
    """What the estimators share whose value target is a return, and whose advantage is that return less the value."""

    def __init__(
        self,
        gamma: Union[float, Tensor],
        average_rewards: bool,
        smallest_std: float,
        time_dim: int,
        differentiable: bool,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim)
        self.average_rewards = average_rewards
        self.smallest_std = smallest_std

    def returns(self, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Optional[Tensor]) -> Tensor:
        """The return that is this estimator's value target."""
        raise NotImplementedError

    def forward(
        self,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Advantage and value target, both of the shape of ``reward``."""
        check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
        wide_reward = widen(self.source(reward))
        if self.average_rewards:
            wide_reward = standardize(wide_reward, self.smallest_std)
        value_target = self.returns(widen(self.source(next_state_value)), wide_reward, done, terminated)
        advantage = value_target - widen(self.source(state_value))
        return ValueEstimate(advantage.to(reward.dtype), value_target.to(reward.dtype))


class TD0Estimator(TDEstimator):
    """One-step returns: :func:`~a2c_compiled.functional.td0_return_estimate` as a module.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        differentiable: let gradients pass.
    """

    def __init__(self, gamma: Union[float, Tensor] = 0.99, average_rewards: bool = False, differentiable: bool = False) -> None:
        super().__init__(gamma, average_rewards, 1e-5, -2, differentiable)

    def returns(self, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Optional[Tensor]) -> Tensor:
        """The one-step return."""
        return td0_return_estimate(self.gamma, next_state_value, reward, done if terminated is None else terminated)


class TD1Estimator(TDEstimator):
    """Returns to the end: :func:`~a2c_compiled.functional.td1_return_estimate` as a module.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
    """

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, 1e-5, time_dim, differentiable)

    def returns(self, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Optional[Tensor]) -> Tensor:
        """The return to the end."""
        return td1_return_estimate(self.gamma, next_state_value, reward, done, terminated, None, self.time_dim)


class TDLambdaEstimator(TDEstimator):
    """Lambda returns: :func:`~a2c_compiled.functional.td_lambda_return_estimate` as a module.

    Args:
        gamma: discount.
        lmbda: weight of the longer returns, from 0 to 1.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-4).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
    """

    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, 1e-4, time_dim, differentiable)
        self.register_coefficient("lmbda", lmbda, UNIT)

    def returns(self, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Optional[Tensor]) -> Tensor:
        """The lambda return."""
        return td_lambda_return_estimate(
            self.gamma, self.lmbda, next_state_value, reward, done, terminated, None, self.time_dim
        )
