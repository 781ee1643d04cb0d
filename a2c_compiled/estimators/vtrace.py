"""V-trace."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._coefficients import POSITIVE
from a2c_compiled.estimators.base import ValueEstimator
from a2c_compiled.functional import ValueEstimate, standardize, vtrace_advantage_estimate


class VTrace(ValueEstimator):
    """:func:`~a2c_compiled.functional.vtrace_advantage_estimate` as a module.

    Args:
        gamma: discount.
        rho_thresh: clip of the importance weight in the temporal difference.
        c_thresh: clip of the importance weight in the trace.
        average_adv: standardise the advantage over the batch (smallest standard deviation 1e-5).
        time_dim: the dimension of time.
        differentiable: let gradients pass.
    """

    needs_log_prob = True
    rho_thresh: Tensor
    c_thresh: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        rho_thresh: Union[float, Tensor] = 1.0,
        c_thresh: Union[float, Tensor] = 1.0,
        average_adv: bool = False,
        time_dim: int = -2,
        differentiable: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim)
        self.register_coefficient("rho_thresh", rho_thresh, POSITIVE)
        self.register_coefficient("c_thresh", c_thresh, POSITIVE)
        self.average_adv = average_adv

    def forward(
        self,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor] = None,
        log_pi: Optional[Tensor] = None,
        log_mu: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Advantage and value target, both of the shape of ``reward``; ``log_pi`` and ``log_mu`` are required."""
        if log_pi is None:
            raise ValueError("log_pi: expected the log-probability of the action under the policy learnt, got None")
        if log_mu is None:
            raise ValueError("log_mu: expected the log-probability of the action under the policy that acted, got None")
        advantage, value_target = vtrace_advantage_estimate(
            self.gamma,
            self.source(log_pi),
            self.source(log_mu),
            self.source(state_value),
            self.source(next_state_value),
            self.source(reward),
            done,
            terminated,
            self.rho_thresh,
            self.c_thresh,
            self.time_dim,
        )
        if self.average_adv:
            advantage = standardize(advantage, 1e-5)
        return ValueEstimate(advantage, value_target)
