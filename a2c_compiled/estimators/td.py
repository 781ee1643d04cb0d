"""Temporal-difference estimators: value targets that are returns, and advantages that are these less the value."""

from typing import Union

from torch import Tensor

from a2c_compiled._hyperparameters import UNIT, positive_int
from a2c_compiled._precision import widen
from a2c_compiled.estimators.base import Steps, ValueEstimator
from a2c_compiled.functional import (
    ValueEstimate,
    n_step_return_estimate,
    td0_return_estimate,
    td1_return_estimate,
    td_lambda_return_estimate,
    upgo_return_estimate,
)
from a2c_compiled.functional.arguments import check_steps


class TDEstimator(ValueEstimator):
    """What the estimators share whose advantage is a return less the value: a subclass has a :meth:`returns`.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim, 1e-5, across_processes)
        self.average_rewards = average_rewards

    def estimate(self, steps: Steps) -> ValueEstimate:
        """The return less the value, and the return."""
        dtype = steps.reward.dtype
        values = {"state_value": steps.state_value, "next_state_value": steps.next_state_value}
        check_steps(steps.reward, {"done": steps.done}, values, steps.terminated)
        wide = Steps(
            steps.gamma,
            widen(steps.state_value),
            widen(steps.next_state_value),
            widen(steps.reward),
            steps.done,
            steps.terminated,
            None,
            None,
        )
        value_target = self.returns(wide)
        return ValueEstimate((value_target - wide.state_value).to(dtype), value_target.to(dtype))

    def returns(self, steps: Steps) -> Tensor:
        """The return that is this estimator's value target."""
        raise NotImplementedError

    def standardizes_reward(self) -> bool:
        """``average_rewards``."""
        return self.average_rewards


class TD0Estimator(TDEstimator, name="TD0"):
    """One-step returns: :func:`~a2c_compiled.functional.td0_return_estimate` as a module.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        differentiable: bool = False,
        across_processes: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, -2, differentiable, across_processes)

    def returns(self, steps: Steps) -> Tensor:
        """The one-step return."""
        terminated = steps.terminated
        if terminated is None:
            terminated = steps.done
        return td0_return_estimate(steps.gamma, steps.next_state_value, steps.reward, terminated)


class TD1Estimator(TDEstimator, name="TD1"):
    """Returns to the end: :func:`~a2c_compiled.functional.td1_return_estimate` as a module.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    def returns(self, steps: Steps) -> Tensor:
        """The return to the end."""
        return td1_return_estimate(
            steps.gamma, steps.next_state_value, steps.reward, steps.done, steps.terminated, None, self.time_dim
        )


class TDLambdaEstimator(TDEstimator, name="TDLambda"):
    """Lambda returns: :func:`~a2c_compiled.functional.td_lambda_return_estimate` as a module.

    Args:
        gamma: discount.
        lmbda: weight of the longer returns, from 0 to 1.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-4).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, time_dim, differentiable, across_processes)
        self.smallest_std = 1e-4
        self.register_coefficient("lmbda", lmbda, UNIT)

    def returns(self, steps: Steps) -> Tensor:
        """The lambda return."""
        return td_lambda_return_estimate(
            steps.gamma, self.lmbda, steps.next_state_value, steps.reward, steps.done, steps.terminated, None, self.time_dim
        )


class NStepEstimator(TDEstimator, name="NStep"):
    """Returns of ``n`` steps: :func:`~a2c_compiled.functional.n_step_return_estimate` as a module.

    Args:
        n: how many rewards there are before the bootstrap: 1 is TD(0).
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    def __init__(
        self,
        n: int = 5,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, time_dim, differentiable, across_processes)
        self.n = positive_int("n", n)

    def returns(self, steps: Steps) -> Tensor:
        """The n-step return."""
        return n_step_return_estimate(
            steps.gamma, self.n, steps.next_state_value, steps.reward, steps.done, steps.terminated, self.time_dim
        )


class UPGO(TDEstimator, name="UPGO"):
    """Upgoing returns: :func:`~a2c_compiled.functional.upgo_return_estimate` as a module.

    Args:
        gamma: discount.
        average_rewards: standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
    """

    def returns(self, steps: Steps) -> Tensor:
        """The upgoing return."""
        return upgo_return_estimate(
            steps.gamma,
            steps.state_value,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            self.time_dim,
        )
