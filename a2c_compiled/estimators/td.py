"""Temporal-difference estimators: the value target is a return, the advantage is this return minus the value."""

from typing import Union

from torch import Tensor

from a2c_compiled._hyperparameters import UNIT, positive_int
from a2c_compiled._kinds import flag
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
from a2c_compiled.functional.steps import zero_where_excluded


class TDEstimator(ValueEstimator):
    """Base class of estimators with ``value_target = return`` and ``advantage = return - state_value``.

    A subclass overrides :meth:`returns`.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        average_rewards: whether to standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.
    """

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim, 1e-5, across_processes, auto_reset_env, skip_masked)
        self.average_rewards = flag("average_rewards", average_rewards)

    def estimate(self, steps: Steps) -> ValueEstimate:
        """Computes ``value_target = returns(steps)`` and ``advantage = value_target - state_value``."""
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
            steps.order,
            steps.mask,
            steps.cu_seqlens,
        )
        value_target = self.returns(wide)
        advantage = zero_where_excluded(value_target - wide.state_value, steps.mask)
        return ValueEstimate(advantage.to(dtype), value_target.to(dtype))

    def returns(self, steps: Steps) -> Tensor:
        """Computes the return, which is the value target. Subclasses override it.

        Args:
            steps: the inputs. Values and rewards are float32 if the caller passed float16 or bfloat16. Log-probabilities are None.

        Returns:
            The return, with the shape and dtype of ``steps.reward``.

        Raises:
            ValueError: a value or flag differs from ``steps.reward`` in shape or device, a coefficient does not broadcast to
                ``steps.reward``, or ``time_dim`` is out of range.
            TypeError: an argument has a wrong type or dtype.
        """
        raise NotImplementedError

    def standardizes_reward(self) -> bool:
        """Returns ``average_rewards``."""
        return self.average_rewards


class TD0Estimator(TDEstimator, name="TD0"):
    """TD(0): one-step returns, :func:`~a2c_compiled.functional.td0_return_estimate` as a module.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        average_rewards: whether to standardise the rewards over the batch (smallest standard deviation 1e-5).
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.
        time_dim: dimension of time. The estimates do not depend on it, but the loss reads it with ``shifted=True``.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.td0_return_estimate`.
    """

    has_trace = False

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        differentiable: bool = False,
        across_processes: bool = False,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
        time_dim: int = -2,
    ) -> None:
        super().__init__(gamma, average_rewards, time_dim, differentiable, across_processes, auto_reset_env, skip_masked)

    def returns(self, steps: Steps) -> Tensor:
        """Computes the TD(0) return, with the shape and dtype of ``steps.reward``."""
        terminated = steps.terminated
        if terminated is None:
            terminated = steps.done
        return td0_return_estimate(steps.gamma, steps.next_state_value, steps.reward, terminated)


class TD1Estimator(TDEstimator, name="TD1"):
    """TD(1): returns to the end of the episode, :func:`~a2c_compiled.functional.td1_return_estimate` as a module.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        average_rewards: whether to standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.td1_return_estimate`.
    """

    reads_mask = True

    def returns(self, steps: Steps) -> Tensor:
        """Computes the TD(1) return, with the shape and dtype of ``steps.reward``."""
        return td1_return_estimate(
            steps.gamma,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            None,
            self.time_dim,
            steps.cu_seqlens,
            steps.mask,
            self.skip_masked,
        )


class TDLambdaEstimator(TDEstimator, name="TDLambda"):
    """TD(lambda): :func:`~a2c_compiled.functional.td_lambda_return_estimate` as a module.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        lmbda: decay of the trace, from 0 (TD(0)) to 1 (TD(1)), of the same types as ``gamma``.
        average_rewards: whether to standardise the rewards over the batch (smallest standard deviation 1e-4).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.td_lambda_return_estimate`.
    """

    reads_mask = True

    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, time_dim, differentiable, across_processes, auto_reset_env, skip_masked)
        self.smallest_std = 1e-4
        self.register_coefficient("lmbda", lmbda, UNIT)

    def returns(self, steps: Steps) -> Tensor:
        """Computes the TD(lambda) return, with the shape and dtype of ``steps.reward``."""
        return td_lambda_return_estimate(
            steps.gamma,
            self.lmbda,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            None,
            self.time_dim,
            steps.cu_seqlens,
            steps.mask,
            self.skip_masked,
        )


class NStepEstimator(TDEstimator, name="NStep"):
    """n-step returns: :func:`~a2c_compiled.functional.n_step_return_estimate` as a module.

    Args:
        n: number of rewards before the bootstrap, at least 1. 1 gives TD(0).
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        average_rewards: whether to standardise the rewards over the batch (smallest standard deviation 1e-5).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Raises:
        ValueError: ``n`` is less than 1, or a coefficient is out of range.
        TypeError: ``n`` is not an integer, or a coefficient is neither a number nor a tensor.

    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.n_step_return_estimate`.
    """

    def __init__(
        self,
        n: int = 5,
        gamma: Union[float, Tensor] = 0.99,
        average_rewards: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, average_rewards, time_dim, differentiable, across_processes, auto_reset_env, skip_masked)
        self.n = positive_int("n", n)

    def returns(self, steps: Steps) -> Tensor:
        """Computes the n-step return, with the shape and dtype of ``steps.reward``."""
        return n_step_return_estimate(
            steps.gamma, self.n, steps.next_state_value, steps.reward, steps.done, steps.terminated, self.time_dim
        )


class UPGO(TDEstimator, name="UPGO"):
    """UPGO: upgoing returns, :func:`~a2c_compiled.functional.upgo_return_estimate` as a module.

    Arguments and errors: see :class:`a2c_compiled.estimators.TD1Estimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.upgo_return_estimate`.
    """

    def returns(self, steps: Steps) -> Tensor:
        """Computes the upgoing return, with the shape and dtype of ``steps.reward``."""
        return upgo_return_estimate(
            steps.gamma,
            steps.state_value,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            self.time_dim,
        )
