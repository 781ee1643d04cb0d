"""The base class of all value estimators."""

from typing import Dict, NamedTuple, Optional, Type, Union

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import NOT_NEGATIVE, UNIT, CoefficientModule
from a2c_compiled._kinds import check_tensors, flag, integer
from a2c_compiled.functional import ValueEstimate, standardize
from a2c_compiled.functional.arguments import check_steps, coefficient
from a2c_compiled.functional.steps import in_callers_order, moved, moved_coefficient, prepare_steps


class Steps(NamedTuple):
    """Inputs of :meth:`ValueEstimator.estimate`, as :meth:`ValueEstimator.forward` prepares them.

    Unless the estimator is ``differentiable``, values, rewards and log-probabilities are detached. ``T`` is time; ``*B`` and ``*F`` are
    any other dimensions, see :mod:`a2c_compiled.functional`.

    Fields:
        gamma: ``[]`` or a shape that broadcasts to ``reward``, floating: discount factor. With ``steps_to_next_obs`` it is
            ``gamma ** steps_to_next_obs``.
        state_value, next_state_value, reward: ``[*B, T, *F]``, one floating dtype. Rewards are standardised if the estimator has that
            option. With ``auto_reset_env``, ``next_state_value`` is ``state_value`` at truncated steps.
        done, terminated: ``[*B, T, *F]``, bool. A ``terminated`` of None means ``terminated = done``. With a mask or packed sequences,
            ``done`` is True also at excluded steps, at the step directly before each of them, and at the end of each sequence.
        log_pi, log_mu: ``[*B, T, *F]``, dtype of ``reward``, or None: log-probability of the action under the current and the behaviour
            policy.
        order: ``[*B, T, *F]``, int64, or None: with ``skip_masked``, the caller's index of the step at each place along time. A
            coefficient that has one entry per step is in the caller's order: convert it with :meth:`ValueEstimator.in_order`.
        mask, cu_seqlens: for an estimator with ``reads_mask``, the arguments of :meth:`ValueEstimator.forward`; otherwise None.
    """

    gamma: Tensor
    state_value: Tensor
    next_state_value: Tensor
    reward: Tensor
    done: Tensor
    terminated: Optional[Tensor]
    log_pi: Optional[Tensor]
    log_mu: Optional[Tensor]
    order: Optional[Tensor] = None
    mask: Optional[Tensor] = None
    cu_seqlens: Optional[Tensor] = None


_ARGUMENTS = (*Steps._fields[1:8], "steps_to_next_obs", "group", "mask", "cu_seqlens")
"""The names of the arguments of :meth:`ValueEstimator.forward`."""


class ValueEstimator(CoefficientModule):
    """Base class of value estimators: modules that compute an advantage and a value target for every step of a rollout.

    >>> advantage, value_target = estimator(state_value, next_state_value, reward, done, terminated)

    Coefficients such as ``gamma`` are buffers: ``estimator.gamma = 0.9`` writes into the buffer and needs no recompilation.

    To write an estimator, derive a class and override :meth:`estimate`. A subclass can also

    * have a name, as in ``class VTrace(ValueEstimator, name="VTrace")``:
      :func:`~a2c_compiled.estimators.make_value_estimator` then accepts this name;
    * set ``needs_log_prob = True``, if :meth:`estimate` reads ``log_pi`` and ``log_mu``;
    * set ``has_trace = False``, if the result of a step does not depend on later steps;
    * set ``reads_mask = True``, if :meth:`estimate` itself takes account of ``steps.mask`` and ``steps.cu_seqlens``. Otherwise
      :meth:`forward` changes values and flags at excluded steps and at the ends of sequences;
    * set ``several_agents = True``, if the values have a dimension of agents, ``agent_dim``, which rewards and flags may lack;
    * override :meth:`standardizes_reward` or :meth:`standardizes_advantage`, if the subclass has an option to standardise.

    Args:
        gamma: discount factor, from 0 to 1; a number or a tensor that broadcasts to ``reward``.
        differentiable: whether results are differentiable in values, rewards and log-probabilities. If False, the estimator detaches
            these inputs.
        time_dim: dimension of time.
        smallest_std: when the estimator standardises rewards or advantages, it divides by the standard deviation or by this number,
            whichever is larger.
        across_processes: whether to standardise over the data of all processes, see :func:`~a2c_compiled.functional.standardize`.
        auto_reset_env: True if the environments return the first observation of the next episode as the next observation of a truncated
            step. At truncated steps (``done`` and not ``terminated``), ``state_value`` then replaces ``next_state_value``. The option has
            no effect if ``terminated`` is None.
        skip_masked: whether a trace passes over excluded steps, see :mod:`a2c_compiled.functional`.

    Raises:
        ValueError: a coefficient is out of range.
        TypeError: a coefficient is neither a number nor a tensor, or an option is not a bool or an integer.

    Shapes and dtypes: see :meth:`forward`.
    """

    # TorchScript lets subclasses inherit __constants__, but not Final annotations.
    __constants__ = ["needs_log_prob", "several_agents", "has_trace", "reads_mask", "agent_dim"]

    needs_log_prob: bool = False
    several_agents: bool = False
    agent_dim: int = -2
    has_trace: bool = True
    """Whether the result of a step depends on later steps."""
    reads_mask: bool = False
    """Whether :meth:`estimate` takes account of masks and packed sequences. A subclass that overrides it must set this again."""
    gamma: Tensor

    def __init_subclass__(cls, name: Optional[str] = None) -> None:
        """Registers the subclass as ``name``, if the class statement passes a name."""
        super().__init_subclass__()
        if "reads_mask" not in cls.__dict__ and {"estimate", "returns"} & {*cls.__dict__}:
            cls.reads_mask = False
        if name is not None:
            REGISTERED[name] = cls

    def __init__(
        self,
        gamma: Union[float, Tensor],
        differentiable: bool,
        time_dim: int,
        smallest_std: float = 1e-4,
        across_processes: bool = False,
        auto_reset_env: bool = False,
        skip_masked: bool = False,
    ) -> None:
        super().__init__()
        self.register_coefficient("gamma", gamma, UNIT)
        self.differentiable = flag("differentiable", differentiable)
        self.time_dim = integer("time_dim", time_dim)
        self.smallest_std = NOT_NEGATIVE.number("smallest_std", smallest_std)
        self.across_processes = flag("across_processes", across_processes)
        self.auto_reset_env = flag("auto_reset_env", auto_reset_env)
        self.skip_masked = flag("skip_masked", skip_masked)

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
        cu_seqlens: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Computes the advantage and the value target of every step.

        ``T`` is time; ``*B`` and ``*F`` are any other dimensions, see :mod:`a2c_compiled.functional`.

        Args:
            state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_t)`.
            next_state_value: ``[*B, T, *F]``, dtype of ``reward``: :math:`V(s_{t+1})`. At a truncated step it is the value of the last
                observation before the reset.
            reward: ``[*B, T, *F]``, floating: :math:`r_t`.
            done: ``[*B, T, *F]``, bool: True at the last step of an episode, terminated or truncated; the trace ends there.
            terminated: ``[*B, T, *F]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
                ``terminated = done``.
            log_pi: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the current policy. Only estimators with
                ``needs_log_prob`` read it.
            log_mu: ``[*B, T, *F]``, dtype of ``reward``: log-probability of the action under the behaviour policy, which chose the action.
            steps_to_next_obs: ``[*B, T, *F]``, integer or floating: number of environment steps between observation and next
                observation (n-step data). ``gamma ** steps_to_next_obs`` replaces ``gamma`` at the step. None means 1.
            group: integer, shape of ``reward`` or of its leading dimensions: rewards or advantages are standardised within each group.
            mask: ``[*B, T, *F]``, bool: True at included steps. Excluded steps change neither the results at included steps nor any
                gradient, whatever values they hold. Results at excluded steps are 0. See :mod:`a2c_compiled.functional`.
            cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences, then T.

        Returns:
            :class:`~a2c_compiled.functional.ValueEstimate`: advantage and value target, with the shape and dtype of ``reward``.

        Raises:
            ValueError: a value, log-probability or flag differs from ``reward`` in shape or device, ``gamma`` or another coefficient
                does not broadcast to ``reward``, ``time_dim`` is out of range, ``cu_seqlens`` has a wrong shape or device, or a
                tensor that the estimator needs is None.
            TypeError: an argument has a wrong type or dtype.
        """
        if not torch.jit.is_scripting():
            tensors = state_value, next_state_value, reward, done, terminated, log_pi, log_mu
            check_tensors(_ARGUMENTS, (*tensors, steps_to_next_obs, group, mask, cu_seqlens), 4)
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
        source_reward = self.source(reward)
        if self.standardizes_reward():
            if not reward.is_floating_point():
                raise TypeError(f"reward: expected a floating dtype, got {reward.dtype}")
            source_reward = self.standardized(source_reward, group, mask)
        done = self.of_each_value(done, state_value)
        if terminated is not None:
            terminated = self.of_each_value(terminated, state_value)
            if self.auto_reset_env:
                values = {"state_value": state_value, "next_state_value": next_state_value}
                check_steps(reward, {"done": done}, values, terminated)
                next_state_value = torch.where(done & ~terminated, state_value, next_state_value)
        steps = Steps(
            gamma,
            self.source(state_value),
            self.source(next_state_value),
            source_reward,
            done,
            terminated,
            None if log_pi is None else self.source(log_pi),
            None if log_mu is None else self.source(log_mu),
            None,
            mask if self.reads_mask else None,
            cu_seqlens if self.reads_mask else None,
        )
        if self.reads_mask or (mask is None and cu_seqlens is None):
            advantage, value_target = self.estimate(steps)
        else:
            advantage, value_target = self._prepared_estimate(steps, mask, cu_seqlens)
        if self.standardizes_advantage():
            advantage = self.standardized(advantage, group, mask)
        return ValueEstimate(advantage, value_target)

    def _prepared_estimate(self, steps: Steps, mask: Optional[Tensor], cu_seqlens: Optional[Tensor]) -> ValueEstimate:
        """Applies the mask and the ends of packed sequences to the flags and values of ``steps``, then calls :meth:`estimate`."""
        values = {"state_value": steps.state_value, "next_state_value": steps.next_state_value}
        log_pi, log_mu = steps.log_pi, steps.log_mu
        if log_pi is not None:
            values["log_pi"] = log_pi
        if log_mu is not None:
            values["log_mu"] = log_mu
        # Without a trace the result does not depend on the time dimension; -1 exists in every tensor.
        time_dim = self.time_dim if self.has_trace else -1
        prepared = prepare_steps(
            steps.reward, steps.done, steps.terminated, values, time_dim, cu_seqlens, mask, self.skip_masked
        )
        gamma = moved_coefficient("gamma", steps.gamma, prepared)
        values = prepared.values
        estimate = self.estimate(
            Steps(
                gamma,
                values["state_value"],
                values["next_state_value"],
                prepared.reward,
                prepared.trace_cut,
                prepared.bootstrap_cut,
                None if log_pi is None else values["log_pi"],
                None if log_mu is None else values["log_mu"],
                prepared.order,
            )
        )
        advantage, value_target = estimate
        return ValueEstimate(in_callers_order(advantage, prepared), in_callers_order(value_target, prepared))

    def in_order(self, coefficient: Tensor, steps: Steps) -> Tensor:
        """Returns ``coefficient``, ``[]`` or a shape that broadcasts to ``steps.reward``, floating, in the order of ``steps``."""
        return moved(coefficient, steps.order, self.time_dim)

    def estimate(self, steps: Steps) -> ValueEstimate:
        """Computes the advantage and the value target from the inputs that :meth:`forward` prepared. Subclasses override it.

        Args:
            steps: the inputs; for shapes and dtypes see :class:`Steps`.

        Returns:
            Advantage and value target, with the shape and dtype of ``steps.reward``.

        Raises:
            ValueError: a value, log-probability or flag differs from ``reward`` in shape or device, ``gamma`` or another coefficient
                does not broadcast to ``reward``, ``time_dim`` is out of range, or a tensor that the estimator needs is None.
            TypeError: an argument has a wrong type or dtype.
        """
        raise NotImplementedError

    def of_each_value(self, signal: Tensor, state_value: Tensor) -> Tensor:
        """Returns ``signal``, a reward or flag of any dtype, in the shape of ``state_value``.

        The base class returns ``signal`` unchanged. :class:`~a2c_compiled.estimators.MultiAgentGAE` expands a signal that all agents share.
        """
        return signal

    def source(self, tensor: Tensor) -> Tensor:
        """Returns ``tensor`` if ``differentiable``, else ``tensor.detach()``. Any shape and dtype."""
        return tensor if self.differentiable else tensor.detach()

    def standardizes_reward(self) -> bool:
        """Returns whether :meth:`forward` standardises the rewards before it calls :meth:`estimate`."""
        return False

    def standardizes_advantage(self) -> bool:
        """Returns whether :meth:`forward` standardises the advantages after it has called :meth:`estimate`."""
        return False

    def standardized(self, x: Tensor, group: Optional[Tensor], mask: Optional[Tensor]) -> Tensor:
        """Calls :func:`a2c_compiled.functional.standardize` with ``smallest_std`` and ``across_processes`` of this estimator.

        Arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.standardize`.
        """
        return standardize(x, self.smallest_std, mask, group, None, self.across_processes)


REGISTERED: Dict[str, Type[ValueEstimator]] = {}
"""Value estimators by name. A class statement with ``name=...`` adds the class."""
