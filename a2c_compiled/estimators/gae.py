"""Generalized advantage estimation (GAE) for one agent and for several agents."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._hyperparameters import UNIT
from a2c_compiled._kinds import flag, integer
from a2c_compiled.estimators.base import Steps, ValueEstimator
from a2c_compiled.functional import ValueEstimate, generalized_advantage_estimate, standardize


class GAE(ValueEstimator, name="GAE"):
    """GAE: :func:`~a2c_compiled.functional.generalized_advantage_estimate` as a module.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        lmbda: decay of the trace, from 0 to 1, of the same types as ``gamma``.
        average_gae: whether to standardise the advantage over the batch (smallest standard deviation 1e-4).
        time_dim: dimension of time. The default -2 fits ``[T, N]`` and ``[N, T, 1]``; use -1 for ``[N, T]`` and ``[T]``.
        auto_reset_env: see :class:`a2c_compiled.estimators.ValueEstimator`.
        differentiable: whether results are differentiable in values and rewards.
        across_processes: whether to standardise over the data of all processes.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula, shapes, dtypes and source: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.
    """

    reads_mask = True
    lmbda: Tensor

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_gae: bool = False,
        time_dim: int = -2,
        auto_reset_env: bool = False,
        differentiable: bool = False,
        across_processes: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim, 1e-4, across_processes, auto_reset_env, skip_masked)
        self.register_coefficient("lmbda", lmbda, UNIT)
        self.average_gae = flag("average_gae", average_gae)

    def estimate(self, steps: Steps) -> ValueEstimate:
        """Computes GAE."""
        return generalized_advantage_estimate(
            steps.gamma,
            self.lmbda,
            steps.state_value,
            steps.next_state_value,
            steps.reward,
            steps.done,
            steps.terminated,
            self.time_dim,
            steps.cu_seqlens,
            steps.mask,
            self.skip_masked,
        )

    def standardizes_advantage(self) -> bool:
        """Returns ``average_gae``."""
        return self.average_gae


class MultiAgentGAE(GAE, name="MAGAE"):
    """GAE for several agents, which may share rewards and flags.

    Values have the shape ``[*B, T, agents, *F]``. ``reward``, ``done`` and ``terminated`` have the same shape, or no dimension of agents.
    Without that dimension they belong to the team and apply to each agent. Results have the shape of the values. With ``average_gae``,
    the estimator standardises the advantages of each agent separately.

    Args:
        gamma, lmbda, average_gae, auto_reset_env, differentiable, across_processes, skip_masked: as in :class:`GAE`.
        time_dim: dimension of time in the values. The default -3 fits ``[N, T, agents, 1]``. In :class:`~a2c_compiled.A2CLoss`, it fits
            ``[N, T, agents]`` too, see there.
        agent_dim: dimension of the agents in the values. A call raises ValueError if the values have no such dimension, or if it is
            ``time_dim``.

    Errors: see :class:`a2c_compiled.estimators.ValueEstimator`.
    Formula and dtypes: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.

    Source: TorchRL's ``MultiAgentGAE``.
    """

    several_agents = True

    def __init__(
        self,
        gamma: Union[float, Tensor] = 0.99,
        lmbda: Union[float, Tensor] = 0.95,
        average_gae: bool = False,
        time_dim: int = -3,
        auto_reset_env: bool = False,
        differentiable: bool = False,
        across_processes: bool = False,
        agent_dim: int = -2,
        skip_masked: bool = False,
    ) -> None:
        super().__init__(gamma, lmbda, average_gae, time_dim, auto_reset_env, differentiable, across_processes, skip_masked)
        self.agent_dim = integer("agent_dim", agent_dim)

    def of_each_value(self, signal: Tensor, state_value: Tensor) -> Tensor:
        """Returns ``signal`` with the dimension of agents that ``state_value``, ``[*B, T, agents, *F]``, has.

        The method expands a signal without that dimension to all agents. ``signal`` may have any dtype.

        Raises:
            ValueError: ``state_value`` has no dimension ``agent_dim``, or it is ``time_dim``.
        """
        dim = self.agent_dim
        if dim < -state_value.dim() or dim >= state_value.dim():
            raise ValueError(f"agent_dim: expected a dimension of values of shape {list(state_value.shape)}, got {dim}")
        dim = dim % state_value.dim()
        if dim == self.time_dim % state_value.dim():
            raise ValueError(f"agent_dim: expected another dimension than time_dim, {self.time_dim}, got {self.agent_dim}")
        if signal.dim() != state_value.dim() - 1:
            return signal
        shape = list(signal.shape)
        shape.insert(dim, state_value.size(dim))
        return signal.unsqueeze(dim).expand(shape)

    def standardized(self, x: Tensor, group: Optional[Tensor], mask: Optional[Tensor]) -> Tensor:
        """Returns ``x`` with mean 0 and standard deviation 1 for each agent."""
        return standardize(x, self.smallest_std, mask, group, self.agent_dim, self.across_processes)
