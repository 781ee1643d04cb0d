"""Generalized advantage estimation, of one agent and of several."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._hyperparameters import UNIT
from a2c_compiled._precision import widen
from a2c_compiled.estimators.base import Steps, ValueEstimator
from a2c_compiled.functional import ValueEstimate, generalized_advantage_estimate, standardize
from a2c_compiled.functional.arguments import check_steps, coefficient


class GAE(ValueEstimator, name="GAE"):
    """:func:`~a2c_compiled.functional.generalized_advantage_estimate` as a module.

    Args:
        gamma: discount.
        lmbda: weight of the longer returns, from 0 to 1.
        average_gae: standardise the advantage over the batch (smallest standard deviation 1e-4).
        time_dim: the dimension of time.
        auto_reset_env: for environments that give, as the next observation of a truncated step, the first one of the next
            episode: bootstrap such a step from its own value, ``reward + gamma * V(s)``, and take every ``done`` as terminated.
        differentiable: let gradients pass.
        across_processes: standardise over the data of all processes.
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
        across_processes: bool = False,
    ) -> None:
        super().__init__(gamma, differentiable, time_dim, 1e-4, across_processes)
        self.register_coefficient("lmbda", lmbda, UNIT)
        self.average_gae = average_gae
        self.auto_reset_env = auto_reset_env

    def estimate(self, steps: Steps) -> ValueEstimate:
        """GAE."""
        value, reward, done, terminated = steps.state_value, steps.reward, steps.done, steps.terminated
        if self.auto_reset_env and terminated is not None:
            check_steps(reward, {"done": done}, {"state_value": value}, terminated)
            own_value = coefficient("gamma", steps.gamma, reward) * widen(value)
            reward = (widen(reward) + own_value.masked_fill(terminated | ~done, 0.0)).to(reward.dtype)
            terminated = done
        return generalized_advantage_estimate(
            steps.gamma, self.lmbda, value, steps.next_state_value, reward, done, terminated, self.time_dim
        )

    def standardizes_advantage(self) -> bool:
        """``average_gae``."""
        return self.average_gae


class MultiAgentGAE(GAE, name="MAGAE"):
    """GAE of several agents at once, which may share their rewards and ends.

    Values are ``[*B, T, agents, *F]``. ``reward``, ``done`` and ``terminated`` have that shape, or lack the agents' dimension: then they
    are the team's, and count for each agent. Results have the shape of the values. Each agent's advantages are standardised by
    themselves. As TorchRL's ``MultiAgentGAE``.

    Args:
        gamma, lmbda, average_gae, auto_reset_env, differentiable, across_processes: as in :class:`GAE`.
        time_dim: the dimension of time in the values: -3 is that of ``[N, T, agents, 1]``.
        agent_dim: the dimension of the agents in the values.

    Raises:
        ValueError: also where the values have no such dimension.
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
    ) -> None:
        super().__init__(gamma, lmbda, average_gae, time_dim, auto_reset_env, differentiable, across_processes)
        self.agent_dim = agent_dim

    def of_each_value(self, signal: Tensor, state_value: Tensor) -> Tensor:
        """``signal`` with the agents' dimension that the values have."""
        dim = self.agent_dim
        if dim < -state_value.dim() or dim >= state_value.dim():
            raise ValueError(f"agent_dim: expected a dimension of values of shape {list(state_value.shape)}, got {dim}")
        if signal.dim() != state_value.dim() - 1:
            return signal
        dim = dim % state_value.dim()
        shape = list(signal.shape)
        shape.insert(dim, state_value.size(dim))
        return signal.unsqueeze(dim).expand(shape)

    def standardized(self, x: Tensor, group: Optional[Tensor], mask: Optional[Tensor]) -> Tensor:
        """``x`` with mean 0 and standard deviation 1 for each agent."""
        return standardize(x, self.smallest_std, mask, group, self.agent_dim, self.across_processes)
