"""What all value estimators share."""

from typing import Dict, NamedTuple, Optional, Type, Union

from torch import Tensor

from a2c_compiled._hyperparameters import UNIT, CoefficientModule
from a2c_compiled.functional import ValueEstimate, standardize
from a2c_compiled.functional.arguments import coefficient


class Steps(NamedTuple):
    """What an estimate is made of; values, rewards and log-probabilities as the results may see them."""

    gamma: Tensor
    state_value: Tensor
    next_state_value: Tensor
    reward: Tensor
    done: Tensor
    terminated: Optional[Tensor]
    log_pi: Optional[Tensor]
    log_mu: Optional[Tensor]


class ValueEstimator(CoefficientModule):
    """A function of :mod:`a2c_compiled.functional` with its hyperparameters.

    Called as ``advantage, value_target = estimator(state_value, next_state_value, reward, done, terminated)``; one that sets
    ``needs_log_prob`` takes ``log_pi`` and ``log_mu`` after these. Shapes, dtypes and errors are the function's.

    An estimator of one's own is a subclass with an :meth:`estimate`. One that sets ``several_agents`` takes values with a dimension of
    agents, which rewards and flags may lack. One that is declared with a name, as in ``class VTrace(ValueEstimator, name="VTrace")``,
    is known to :func:`~a2c_compiled.estimators.make_value_estimator` by it. One that has the option to standardise, for which TorchRL
    has three names, returns it in :meth:`standardizes_reward` or in :meth:`standardizes_advantage`.

    Args:
        gamma: discount, from 0 to 1; a number or a tensor that broadcasts to the data.
        differentiable: let gradients pass from the results to values, rewards and log-probabilities.
        time_dim: the dimension of time.
        smallest_std: what the standard deviation counts as at least, where rewards or advantages are standardised.
        across_processes: standardise over the data of all processes, see :func:`~a2c_compiled.functional.standardize`.

    Raises:
        ValueError: a coefficient is out of range.
        TypeError: a coefficient is neither a number nor a tensor.
    """

    # Unlike a Final annotation, inherited by subclasses in TorchScript.
    __constants__ = ["needs_log_prob", "several_agents"]

    needs_log_prob: bool = False
    several_agents: bool = False
    gamma: Tensor

    def __init_subclass__(cls, name: Optional[str] = None) -> None:
        super().__init_subclass__()
        if name is not None:
            REGISTERED[name] = cls

    def __init__(
        self,
        gamma: Union[float, Tensor],
        differentiable: bool,
        time_dim: int,
        smallest_std: float = 1e-4,
        across_processes: bool = False,
    ) -> None:
        super().__init__()
        self.register_coefficient("gamma", gamma, UNIT)
        self.differentiable = differentiable
        self.time_dim = time_dim
        self.smallest_std = smallest_std
        self.across_processes = across_processes

    def forward(
        self,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor] = None,
        log_pi: Optional[Tensor] = None,
        log_mu: Optional[Tensor] = None,
        steps_to_next_obs: Optional[Tensor] = None,
        group: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Advantage and value target, both of the shape of ``reward``.

        Args:
            state_value, next_state_value, reward, done, terminated: as the function says.
            log_pi, log_mu: log-probability of the action under the policy learnt and under the one that acted, where
                ``needs_log_prob``; else not read.
            steps_to_next_obs: how many steps lie between observation and next observation, of the shape of ``reward``: each step is
                then discounted by ``gamma`` to that power. None is one step.
            group: integers, of the shape of ``reward`` or of its leading dimensions: standardise within each group.
            mask: bool, of the shape of ``reward``: what counts where rewards or advantages are standardised.
        """
        reward = self.of_each_value(reward, state_value)
        gamma = self.gamma
        if steps_to_next_obs is not None:
            power = self.of_each_value(steps_to_next_obs, state_value)
            if power.shape != reward.shape:
                raise ValueError(
                    f"steps_to_next_obs: expected the shape of reward, {list(reward.shape)}, got {list(power.shape)}"
                )
            gamma = coefficient("gamma", gamma, reward) ** power
        if mask is not None:
            mask = self.of_each_value(mask, state_value)
        known_reward = self.source(reward)
        if self.standardizes_reward():
            known_reward = self.standardized(known_reward, group, mask)
        steps = Steps(
            gamma,
            self.source(state_value),
            self.source(next_state_value),
            known_reward,
            self.of_each_value(done, state_value),
            None if terminated is None else self.of_each_value(terminated, state_value),
            None if log_pi is None else self.source(log_pi),
            None if log_mu is None else self.source(log_mu),
        )
        advantage, value_target = self.estimate(steps)
        if self.standardizes_advantage():
            advantage = self.standardized(advantage, group, mask)
        return ValueEstimate(advantage, value_target)

    def estimate(self, steps: Steps) -> ValueEstimate:
        """Advantage and value target from what :meth:`forward` has prepared."""
        raise NotImplementedError

    def of_each_value(self, signal: Tensor, state_value: Tensor) -> Tensor:
        """A reward or flag for each value; several values may share one."""
        return signal

    def source(self, tensor: Tensor) -> Tensor:
        """``tensor`` as the results may see it: without its gradient, unless ``differentiable``."""
        return tensor if self.differentiable else tensor.detach()

    def standardizes_reward(self) -> bool:
        """Whether rewards are standardised before anything else."""
        return False

    def standardizes_advantage(self) -> bool:
        """Whether advantages are standardised."""
        return False

    def standardized(self, x: Tensor, group: Optional[Tensor], mask: Optional[Tensor]) -> Tensor:
        """``x`` with mean 0 and standard deviation 1."""
        return standardize(x, self.smallest_std, mask, group, None, self.across_processes)


REGISTERED: Dict[str, Type[ValueEstimator]] = {}
"""The estimators by name, each entered where it is declared."""
