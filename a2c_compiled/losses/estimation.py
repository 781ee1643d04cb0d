"""Computes advantage, value target and critic values for the loss."""

from typing import Any, NamedTuple, Optional, Self, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.estimators import make_value_estimator
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.losses.actor_critic import ActorCritic, PolicyOutputs, checked
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import (
    Batch,
    check_action,
    check_values,
    experience,
    laid_out,
    laid_out_or_none,
    match_dims,
    shaped,
    zero_nonfinite,
)
from a2c_compiled.recurrent import restart_after


class Estimates(NamedTuple):
    """Inputs of the losses that do not come from the actor, each ``[*B]``. All fields except ``advantage`` may be None.

    Fields:
        new_state_value: floating: value by the critic that is trained, with gradient if the critic loss needs the gradient.
        advantage: floating: the advantage of each step.
        value_target: floating: the return that the critic learns to predict.
        state_value: floating: value at the time of the rollout. If the caller passed neither this value nor an advantage, the field is
            ``new_state_value``, detached.
        mask: bool: steps that count. None: all steps count.
    """

    new_state_value: Optional[Tensor]
    advantage: Tensor
    value_target: Optional[Tensor]
    state_value: Optional[Tensor]
    mask: Optional[Tensor]


class EstimatingActorCritic(ActorCritic):
    """Adds the value estimator and the advantage norm to :class:`ActorCritic`, for :class:`~a2c_compiled.A2CLoss`."""

    def __init__(self, advantage_norm: Optional[AdvantageNorm], *networks: Any) -> None:
        super().__init__(*networks)
        self.advantage_norm = None if advantage_norm is None else checked("advantage_norm", advantage_norm, AdvantageNorm)

    def make_value_estimator(self, value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> Self:
        """Sets the value estimator, moves it to the device of the loss's coefficients, and returns the loss.

        Arguments and errors: see :func:`a2c_compiled.estimators.make_value_estimator`.
        """
        self.value_estimator = make_value_estimator(value_type, **hyperparams).to(self._coefficients_device())
        return self

    @torch.jit.unused
    @torch.no_grad()
    def estimates(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Optional[Tensor] = None,
        next_observation: Optional[Tensor] = None,
        done: Optional[Tensor] = None,
        terminated: Optional[Tensor] = None,
        state_value: Optional[Tensor] = None,
        sample_log_prob: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
        steps_to_next_obs: Optional[Tensor] = None,
        group: Optional[Tensor] = None,
        cu_seqlens: Optional[Tensor] = None,
    ) -> Estimates:
        """Computes advantages and value targets for the whole rollout, without gradient.

        To get the losses of a minibatch, pass slices of ``advantage``, ``value_target``, ``state_value`` and ``mask`` to
        :meth:`a2c_compiled.A2CLoss.forward`. In training mode, the method also updates the advantage norm, as a call with a rollout
        does. TorchScript does not have this method.

        Returns:
            :class:`Estimates`: ``[*B]``, floating (``mask`` is bool, or None if every step counts).

        Arguments, shapes, dtypes and errors: see :meth:`a2c_compiled.A2CLoss.forward`.
        """
        transitions = reward, next_observation, done, terminated
        no_estimates = None, None  # advantage and value_target
        others = state_value, sample_log_prob, mask, steps_to_next_obs, group
        batch = Batch(observation, *transitions, *no_estimates, *others, cu_seqlens=cu_seqlens)
        policy, batch = self._read(batch, action)
        return self._estimated(batch, policy.log_prob, False)

    def _read(self, entries: Batch, action: Tensor) -> Tuple[PolicyOutputs, Batch]:
        """Checks the inputs, runs the actor and returns its outputs and the batch after :func:`shaped`.

        At masked-out steps, NaN and infinity in observations become 0 before the actor runs.
        """
        observation, mask = entries.observation, entries.mask
        check_action(action, mask)
        if mask is not None:
            observation = zero_nonfinite("observation", observation, mask)
            if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
                if self.has_recurrent_network:
                    observation = restart_after(observation, ~mask)
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if entries.cu_seqlens is not None and self.has_recurrent_network:
                start = observation[2]
                observation = restart_after(observation, sequence_ends(entries.cu_seqlens, start, 0).expand_as(start))
        policy = self.policy(observation, action, mask)
        return policy, shaped(entries, observation, policy.log_prob, self.value_estimator.several_agents)

    def _given(self, batch: Batch, advantage: Tensor, log_prob: Tensor, wants_critic: bool) -> Estimates:
        """Returns the advantage and the value target that the caller passed, detached, with the critic's values if ``wants_critic``."""
        new_state_value: Optional[Tensor] = None
        if wants_critic:
            new_state_value = self.critic(batch.observation, True)
            check_values(new_state_value, log_prob, "the actions")
            new_state_value = match_dims(new_state_value, log_prob)
        value_target = batch.value_target
        if value_target is not None:
            value_target = value_target.detach()
        return Estimates(new_state_value, advantage.detach(), value_target, batch.state_value, batch.mask)

    def _estimated(self, batch: Batch, log_prob: Tensor, with_gradient: bool) -> Estimates:
        """Computes advantage and value target with the value estimator, without gradient to the networks.

        ``with_gradient``: whether ``new_state_value`` has a gradient.
        """
        several_agents = self.value_estimator.several_agents
        if self.shifted and several_agents:
            raise ValueError("shifted: expected False with a value estimator of several agents, got True")
        values = self.values(batch, self.value_estimator.time_dim, with_gradient)
        value, next_value = widen(values.state_value.detach()), widen(values.next_state_value.detach())
        reward, extra_dims = experience(batch)[0], batch.extra_dims
        if not several_agents:
            check_values(value, reward, "reward")
            value, next_value = (
                laid_out(match_dims(value, reward), extra_dims),
                laid_out(match_dims(next_value, reward), extra_dims),
            )
        # Environments may return float64 rewards; the estimator needs the dtype of the values.
        if reward.is_floating_point():
            reward = reward.to(value.dtype)
        log_pi: Optional[Tensor] = None
        log_mu: Optional[Tensor] = None
        if self.value_estimator.needs_log_prob:
            sample_log_prob = batch.sample_log_prob
            if sample_log_prob is None:
                raise ValueError("sample_log_prob: expected a tensor, which the value estimator needs, got None")
            log_pi = match_dims(log_prob.detach(), value).to(reward.dtype)
            log_mu = match_dims(sample_log_prob, value).to(reward.dtype)
        mask = values.mask
        estimate = self.value_estimator(
            value,
            next_value,
            laid_out(reward, extra_dims),
            laid_out(values.done, extra_dims),
            laid_out_or_none(values.terminated, extra_dims),
            log_pi,
            log_mu,
            laid_out_or_none(batch.steps_to_next_obs, extra_dims),
            laid_out_or_none(batch.group, extra_dims),
            None if mask is None else match_dims(mask, value),
            batch.cu_seqlens,
        )
        value_target, state_value = match_dims(estimate.value_target, log_prob), match_dims(values.state_value, log_prob)
        if self.advantage_norm is not None:  # noqa: SIM102 - TorchScript would compile the call although there is no norm
            if self.advantage_norm.training:
                self.advantage_norm.update(value_target, mask)
        old_value = batch.state_value
        old_value = state_value.detach() if old_value is None else old_value
        return Estimates(state_value, match_dims(estimate.advantage, log_prob), value_target, old_value, mask)
