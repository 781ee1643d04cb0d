"""What the losses of a step are computed from beside the policy: advantage, value target and the critic's values."""

from typing import Any, NamedTuple, Optional, Self, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.estimators import make_value_estimator
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.losses.actor_critic import ActorCritic, PolicyOutputs, checked
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import (
    Batch,
    check_action,
    check_values,
    experience,
    finite,
    laid_out,
    laid_out_or_none,
    like,
    shaped,
)


class Estimates(NamedTuple):
    """What the loss of a step is computed from beside the policy, each ``[*B]``; ``state_value`` is the critic's where none was given."""

    new_state_value: Optional[Tensor]
    advantage: Tensor
    value_target: Optional[Tensor]
    state_value: Optional[Tensor]
    mask: Optional[Tensor]


class EstimatingActorCritic(ActorCritic):
    """An actor and a critic with the value estimator of :class:`~a2c_compiled.A2CLoss`."""

    def __init__(self, advantage_norm: Optional[AdvantageNorm], *networks: Any) -> None:
        super().__init__(*networks)
        self.advantage_norm = None if advantage_norm is None else checked("advantage_norm", advantage_norm, AdvantageNorm)

    def make_value_estimator(self, value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> Self:
        """Choose the value estimator, as :func:`a2c_compiled.estimators.make_value_estimator` describes; returns the loss."""
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
    ) -> Estimates:
        """What :meth:`a2c_compiled.A2CLoss.forward` computes the losses from, without gradient: given to it, of some of the steps, it gives
        their losses.

        Not in TorchScript.
        """
        experiences = reward, next_observation, done, terminated
        more = state_value, sample_log_prob, mask, steps_to_next_obs, group
        policy, batch = self._read(Batch(observation, *experiences, None, None, *more), action)
        return self._estimated(batch, policy.log_prob, False)

    def _read(self, entries: Batch, action: Tensor) -> Tuple[PolicyOutputs, Batch]:
        """What the actor makes of the observations, and the other entries brought to one shape; all that the mask leaves out is finite."""
        observation, mask = entries.observation, entries.mask
        check_action(action, mask)
        if mask is not None:
            observation, action = finite("observation", observation, mask), finite("action", action, mask)
        policy = self.policy(observation, action)
        return policy, shaped(entries, observation, policy.log_prob, self.value_estimator.several_agents)

    def _given(self, batch: Batch, advantage: Tensor, log_prob: Tensor, wants_critic: bool) -> Estimates:
        """The estimates that were given, and the critic's values where its loss is wanted."""
        new_state_value: Optional[Tensor] = None
        if wants_critic:
            new_state_value = self.critic(batch.observation, True)
            check_values(new_state_value, log_prob, "the actions")
            new_state_value = like(new_state_value, log_prob)
        return Estimates(new_state_value, advantage, batch.value_target, batch.state_value, batch.mask)

    def _estimated(self, batch: Batch, log_prob: Tensor, with_gradient: bool) -> Estimates:
        """Advantage and value target by the value estimator, with no gradient to either network."""
        several_agents = self.value_estimator.several_agents
        if self.shifted and several_agents:
            raise ValueError("shifted: expected False with a value estimator of several agents, got True")
        values = self.values(batch, self.value_estimator.time_dim, with_gradient)
        value, next_value = widen(values.state_value.detach()), widen(values.next_state_value.detach())
        reward, extra_dims = experience(batch)[0], batch.extra_dims
        if not several_agents:
            check_values(value, reward, "reward")
            value, next_value = laid_out(like(value, reward), extra_dims), laid_out(like(next_value, reward), extra_dims)
        # In the networks' precision: environments hand over float64 rewards.
        if reward.is_floating_point():
            reward = reward.to(value.dtype)
        log_pi: Optional[Tensor] = None
        log_mu: Optional[Tensor] = None
        if self.value_estimator.needs_log_prob:
            sample_log_prob = batch.sample_log_prob
            if sample_log_prob is None:
                raise ValueError("sample_log_prob: expected a tensor, which the value estimator needs, got None")
            log_pi = like(log_prob.detach(), value).to(reward.dtype)
            log_mu = like(sample_log_prob, value).to(reward.dtype)
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
            None if mask is None else like(mask, value),
        )
        value_target, state_value = like(estimate.value_target, log_prob), like(values.state_value, log_prob)
        if self.advantage_norm is not None:  # noqa: SIM102 - TorchScript would look for what there is not
            if self.advantage_norm.training:
                self.advantage_norm.update(value_target, mask)
        before = batch.state_value
        before = state_value.detach() if before is None else before
        return Estimates(state_value, like(estimate.advantage, log_prob), value_target, before, mask)
