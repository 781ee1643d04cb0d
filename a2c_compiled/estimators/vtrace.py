"""V-trace as a module."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._hyperparameters import POSITIVE, UNIT
from a2c_compiled._kinds import flag
from a2c_compiled.estimators.base import Steps, ValueEstimator
from a2c_compiled.functional import ValueEstimate, vtrace_advantage_estimate


class VTrace(ValueEstimator, name="VTrace"):
    """V-trace: :func:`~a2c_compiled.functional.vtrace_advantage_estimate` as a module.

    A call needs ``log_pi`` and ``log_mu``, the log-probabilities of the actions under the current and the behaviour policy.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        rho_thresh: largest importance weight in the temporal difference, positive. None means infinity: no clipping.
        c_thresh: largest importance weight in the trace, positive. None means infinity: no clipping.
        average_adv: whether to standardise the advantage over the batch (smallest standard deviation 1e-5).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        differentiable: whether results are differentiable in values, rewards and log-probabilities.
        across_processes: whether to standardise over the data of all processes.
        pg_rho_thresh: largest importance weight in the advantage, positive. None means ``rho_thresh``.
        lmbda: decay of the trace, from 0 to 1.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.vtrace_advantage_estimate`.
    """

    needs_log_prob = True
    reads_mask = True
    rho_thresh: Tensor
    c_thresh: Tensor
    pg_rho_thresh: Optional[Tensor]
    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        rho_thresh: Optional[Union[float, Tensor]] = 1.0,
        c_thresh: Optional[Union[float, Tensor]] = 1.0,
        average_adv: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
        across_processes: bool = False,
        pg_rho_thresh: Optional[Union[float, Tensor]] = None,
        lmbda: Union[float, Tensor] = 1.0,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim, 1e-5, across_processes, auto_reset_env, skip_masked)
        self.register_coefficient("rho_thresh", float("inf") if rho_thresh is None else rho_thresh, POSITIVE)
        self.register_coefficient("c_thresh", float("inf") if c_thresh is None else c_thresh, POSITIVE)
        self.register_coefficient("pg_rho_thresh", pg_rho_thresh, POSITIVE, optional=True)
        self.register_coefficient("lmbda", lmbda, UNIT)
        self.average_adv = flag("average_adv", average_adv)

    def estimate(self, steps: Steps) -> ValueEstimate:
        """Computes V-trace. Raises ValueError if ``log_pi`` or ``log_mu`` is None."""
        log_pi, log_mu = steps.log_pi, steps.log_mu
        if log_pi is None:
            raise ValueError("log_pi: expected the log-probability of the action under the current policy, got None")
        if log_mu is None:
            raise ValueError("log_mu: expected the log-probability of the action under the behaviour policy, got None")
        return vtrace_advantage_estimate(
            steps.gamma,
            log_pi,
            log_mu,
            steps.state_value,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            self.rho_thresh,
            self.c_thresh,
            self.time_dim,
            steps.cu_seqlens,
            self.pg_rho_thresh,
            self.lmbda,
            steps.mask,
            self.skip_masked,
        )

    def standardizes_advantage(self) -> bool:
        """Returns ``average_adv``."""
        return self.average_adv
