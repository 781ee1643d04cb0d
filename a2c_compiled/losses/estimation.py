"""Computes advantage, value target and critic values for the loss."""

from typing import Any, NamedTuple, Optional, Self, Tuple

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.estimators import make_value_estimator
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.functional.packed import sequence_ends
from a2c_compiled.losses.actor_critic import LossNetworks, PolicyOutputs, checked
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import (
    Batch,
    agents_layout,
    check_entries,
    checked_values,
    experience,
    laid_out,
    laid_out_or_none,
    like_values,
    like_values_or_none,
    mask_of_values,
    match_dims,
    of_each_agent,
    shaped,
    zero_nonfinite,
)
from a2c_compiled.losses.value_norm import PopArt
from a2c_compiled.recurrent import restart_after


class Estimates(NamedTuple):
    """Inputs of the losses that do not come from the actor, each ``[*B]``. All fields except ``advantage`` may be None.

    If the critic returns one value for several agents, the values and ``value_target`` have size 1 in the dimension of agents.

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


class EstimatingActorCritic(LossNetworks):
    """Adds the value estimator and the norms to :class:`LossNetworks`, for :class:`~a2c_compiled.A2CLoss`."""

    def __init__(self, advantage_norm: Optional[AdvantageNorm], value_norm: Optional[PopArt], *networks: Any) -> None:
        super().__init__(*networks)
        self.advantage_norm = None if advantage_norm is None else checked("advantage_norm", advantage_norm, AdvantageNorm)
        self.value_norm = None if value_norm is None else checked("value_norm", value_norm, PopArt)
        self._check_value_norm()

    @torch.jit.unused
    def _check_value_norm(self) -> None:
        """Raises ValueError unless ``value_norm`` is the one PopArt of the critic, of the critic alone, and there is no target critic."""
        found = [module for module in self.critic_network.modules() if isinstance(module, PopArt)]
        if self.value_norm is None and found:
            raise ValueError("value_norm: expected the PopArt of critic_network, got None")
        if self.value_norm is None:
            return
        if len(found) != 1 or found[0] is not self.value_norm:
            raise ValueError(
                f"value_norm: expected the one PopArt of critic_network, got another one ({len(found)} in critic_network)"
            )
        own = {id(parameter) for parameter in self.value_norm.parameters()}
        if any(id(parameter) in own for parameter in self.actor_network.parameters()):
            raise ValueError("value_norm: expected a layer that actor_network does not share, got a shared layer")
        if self.target_critic_network is not None:
            raise ValueError(
                "value_norm: expected None with a target_critic_network (its last layer is not corrected), got a PopArt"
            )

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
        check_entries(entries, action)
        if mask is not None:
            observation = zero_nonfinite("observation", observation, mask, self.value_estimator.several_agents)
            if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
                if self.has_recurrent_network:
                    observation = restart_after(observation, ~mask)
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if entries.cu_seqlens is not None and self.has_recurrent_network:
                start = observation[2]
                observation = restart_after(observation, sequence_ends(entries.cu_seqlens, start, 0).expand_as(start))
        policy = self.policy(observation, action, mask)
        agent, extra_dims = -1, 0
        if self.value_estimator.several_agents:
            agent, extra_dims = agents_layout(policy.log_prob, self.value_estimator.agent_dim, self.value_estimator.time_dim)
        return policy, shaped(entries, observation, policy.log_prob, agent, extra_dims, policy.features)

    def _given(self, batch: Batch, advantage: Tensor, log_prob: Tensor, wants_critic: bool) -> Estimates:
        """Returns the advantage and the value target that the caller passed, detached, with the critic's values if ``wants_critic``."""
        new_state_value: Optional[Tensor] = None
        value_target = batch.value_target
        if value_target is not None:
            value_target = value_target.detach()
        if wants_critic:
            new_state_value = checked_values(
                self.critic(batch.observation, batch.features, True), log_prob, "the actions", batch.agent
            )
            if value_target is not None and batch.agent >= 0:
                value_target = like_values("value_target", value_target, new_state_value, batch.agent)
        return Estimates(new_state_value, advantage.detach(), value_target, batch.state_value, batch.mask)

    def _estimated(self, batch: Batch, log_prob: Tensor, with_gradient: bool) -> Estimates:
        """Computes advantage and value target with the value estimator, without gradient to the networks.

        ``with_gradient``: whether ``new_state_value`` has a gradient.
        """
        agent, extra_dims = batch.agent, batch.extra_dims
        if self.shifted and agent >= 0:
            raise ValueError("shifted: expected False with a value estimator of several agents, got True")
        moves_values = False
        if self.value_norm is not None:
            moves_values = self.value_norm.training
        values = self.values(batch, self.value_estimator.time_dim, with_gradient and not moves_values)
        reward, done, terminated = experience(batch)[0], values.done, values.terminated
        steps, group, mask = batch.steps_to_next_obs, batch.group, values.mask
        reference = reward if agent < 0 else log_prob
        state_value = checked_values(values.state_value, reference, "reward", agent)
        value = widen(state_value.detach())
        next_value = checked_values(widen(values.next_state_value.detach()), reference, "reward", agent)
        if agent >= 0:
            reward, done = like_values("reward", reward, value, agent), like_values("done", done, value, agent)
            terminated = like_values_or_none("terminated", terminated, value, agent)
            steps = like_values_or_none("steps_to_next_obs", steps, value, agent)
            mask = mask_of_values(mask, value, agent)
        # Environments may return float64 rewards; the estimator needs the dtype of the values.
        if reward.is_floating_point():
            reward = reward.to(value.dtype)
        log_pi: Optional[Tensor] = None
        log_mu: Optional[Tensor] = None
        if self.value_estimator.needs_log_prob:
            sample_log_prob = batch.sample_log_prob
            if sample_log_prob is None:
                raise ValueError("sample_log_prob: expected a tensor, which the value estimator needs, got None")
            log_pi = laid_out(log_prob.detach(), extra_dims).to(reward.dtype)
            log_mu = laid_out(sample_log_prob, extra_dims).to(reward.dtype)
        estimate = self.value_estimator(
            laid_out(value, extra_dims),
            laid_out(next_value, extra_dims),
            laid_out(reward, extra_dims),
            laid_out(done, extra_dims),
            laid_out_or_none(terminated, extra_dims),
            log_pi,
            log_mu,
            laid_out_or_none(steps, extra_dims),
            laid_out_or_none(group, extra_dims),
            laid_out_or_none(mask, extra_dims),
            batch.cu_seqlens,
        )
        value_target = match_dims(estimate.value_target, log_prob)
        if self.advantage_norm is not None:  # noqa: SIM102 - TorchScript would compile the call although there is no norm
            if self.advantage_norm.training:
                self.advantage_norm.observe(match_dims(estimate.advantage, log_prob), value_target, mask)
        if self.value_norm is not None:  # noqa: SIM102 - as above
            if moves_values:
                self.value_norm.update(value_target, mask)
                if with_gradient:  # only now, because autograd refuses parameters that change after they were read
                    state_value = checked_values(
                        self.critic(batch.observation, batch.features, True), reference, "reward", agent
                    )
        old_value = batch.state_value
        old_value = state_value.detach() if old_value is None else old_value
        advantage = of_each_agent("advantage", estimate.advantage, log_prob, agent)
        return Estimates(state_value, advantage, value_target, old_value, values.mask)
