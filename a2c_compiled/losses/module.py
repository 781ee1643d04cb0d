"""The A2C loss as a module: networks, distribution and value estimator around the objective."""

from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Distribution
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.losses.a2c import A2CLosses, Terms, Weights, a2c_objective, check_shape, counted, left_out, weighted_losses
from a2c_compiled.losses.actor_critic import PolicyOutputs
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import Batch
from a2c_compiled.losses.estimation import Estimates, EstimatingActorCritic


class A2CLoss(EstimatingActorCritic):
    """Advantage actor-critic loss over an actor network, a critic network and an action distribution.

    >>> loss = A2CLoss(actor, critic, distributions.Categorical(4))
    >>> losses = loss(observation, action, reward=reward, next_observation=next_observation, done=done, terminated=terminated)
    >>> (losses.loss_objective + losses.loss_critic + losses.loss_entropy).backward()

    The actor network maps an observation to ``[*B, distribution.num_params]``, the critic network to ``[*B, 1]`` or ``[*B]``. Both are
    used as they are: their parameters are the loss's parameters, and they may share modules.

    Args:
        actor_network, critic_network: modules; ``actor=`` and ``critic=`` are aliases and win.
        distribution: of the actions, one of :mod:`a2c_compiled.distributions`.
        value_estimator: for advantages computed inside: whatever :func:`~a2c_compiled.estimators.make_value_estimator` takes, None for
            GAE with gamma 0.99 and lmbda 0.95.
        entropy_coef: weight of the entropy bonus; 0 drops both entropy outputs, for good: to raise it from nothing, start just above 0.
        critic_coef: weight of the critic loss; None drops it with what it needs.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        entropy_bonus: False drops both entropy outputs.
        samples_mc_entropy: number of samples for an entropy that has no closed form.
        separate_losses: hold the parameters that actor and critic share out of the critic's loss.
        functional: taken for TorchRL's callers; either way the networks stay plain modules that
            ``torch.func.functional_call`` works on (with ``tie_weights=False`` where they share modules: torch otherwise leaves the
            given tensors in them).
        reduction: of the losses: ``"mean"``, ``"sum"`` or ``"none"``.
        clip_value: largest step of the value that the critic's loss rewards; a number or a one-element tensor, None or 0 for no clipping.
        gamma: belongs to the value estimator; anything but None is refused.
        advantage_norm: a :class:`~a2c_compiled.losses.PercentileNorm`, by whose ``scale()`` advantages are divided. In training mode it
            is updated with the value targets that are computed here; with advantages given, call
            ``advantage_norm.update(value_target)`` once a rollout.
        shifted: evaluate the critic once on ``T + shifted_budget`` observations instead of on ``2 T``. Serves data whose next
            observation is the next step's observation wherever the episode goes on (not n-step data).
        shifted_budget: how many next observations of their own a trajectory has room for: one at the end, each further one for a step
            before it that was cut short. Steps that find no room count no more: their trajectory ends earlier.
        value_chunk_size, num_chunks: call the critic on so many leading entries at a time, or in so many pieces: less memory where its
            inner tensors are large. Not in exported graphs, which serve any number of entries: those call it once.
        target_critic_network: gives the next observations' values in the critic's place; it does not learn, its parameters are set not
            to require grad. ``torch.optim.swa_utils.AveragedModel`` follows a critic softly.
        diagnostics: also give ``explained_variance`` and, where ``sample_log_prob`` is given, ``kl_approx``.

    ``entropy_coef``, ``critic_coef``, ``clip_value`` and the estimator's ``gamma`` and ``lmbda`` are buffers that can be assigned numbers
    at any time. ``out_keys`` can be assigned the names of the outputs wanted; the others are None.

    Raises:
        TypeError: a network, the distribution or the estimator is missing or of another kind, or ``gamma`` is given.
        ValueError: an option has a value that is not listed.
    """

    __jit_unused_properties__ = ["out_keys", "reads_log_prob", "reads_state_value"]
    __constants__ = ["needs_sample_log_prob"]  # unlike a Final annotation, inherited by subclasses in TorchScript

    needs_sample_log_prob: bool = False
    """Whether :meth:`objective` reads ``sample_log_prob``."""

    entropy_coef: Tensor
    critic_coef: Optional[Tensor]
    clip_value: Optional[Tensor]
    _dropped: List[str]

    def __init__(
        self,
        actor_network: Optional[nn.Module] = None,
        critic_network: Optional[nn.Module] = None,
        distribution: Optional[Distribution] = None,
        value_estimator: Optional[EstimatorKind] = None,
        entropy_coef: Union[float, Tensor] = 0.01,
        critic_coef: Optional[Union[float, Tensor]] = 1.0,
        loss_critic_type: str = "smooth_l1",
        *,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        separate_losses: bool = False,
        functional: bool = True,
        reduction: Optional[str] = "mean",
        clip_value: Optional[Union[float, Tensor]] = None,
        gamma: None = None,
        actor: Optional[nn.Module] = None,
        critic: Optional[nn.Module] = None,
        advantage_norm: Optional[AdvantageNorm] = None,
        shifted: bool = False,
        shifted_budget: int = 1,
        value_chunk_size: Optional[int] = None,
        num_chunks: Optional[int] = None,
        target_critic_network: Optional[nn.Module] = None,
        diagnostics: bool = False,
    ) -> None:
        super().__init__(
            advantage_norm,
            actor_network if actor is None else actor,
            critic_network if critic is None else critic,
            distribution,
            target_critic_network,
            separate_losses,
            shifted,
            shifted_budget,
            value_chunk_size,
            num_chunks,
        )
        if gamma is not None:
            raise TypeError("gamma: expected None, since it belongs to the value estimator (GAE(gamma=...)), got a value")
        reduction = "mean" if reduction is None else reduction
        _check_choice("loss_critic_type", loss_critic_type, ("l1", "l2", "smooth_l1"))
        _check_choice("reduction", reduction, ("mean", "sum", "none"))
        if samples_mc_entropy < 1:
            raise ValueError(f"samples_mc_entropy: expected at least 1, got {samples_mc_entropy}")
        self.diagnostics = diagnostics
        self.loss_critic_type = loss_critic_type
        self.reduction = reduction
        self.samples_mc_entropy = samples_mc_entropy
        self.register_coefficient("entropy_coef", entropy_coef, scalar=True)
        self.register_coefficient("critic_coef", critic_coef, optional=True, scalar=True)
        self.register_coefficient("clip_value", _checked_clip_value(clip_value), NOT_NEGATIVE, optional=True, scalar=True)
        self.entropy_bonus = bool(entropy_bonus and self.entropy_coef != 0)
        # To the device of the actor network, leaving the networks where they are.
        device = self.device()
        if device.type != "meta":
            for name, coefficient in self._buffers.items():
                self._buffers[name] = None if coefficient is None else coefficient.to(device)
            self.distribution.to(device)
            if self.advantage_norm is not None:
                self.advantage_norm.to(device)
        self.make_value_estimator(value_estimator)
        self._dropped = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("entropy_coeff", "critic_coeff"):
            raise AttributeError(f"{name}: spelt {name[:-1]} here")
        super().__setattr__(name, value)

    @property
    def out_keys(self) -> Tuple[str, ...]:
        """Names of the outputs that are not None, in order; ``kl_approx`` is one all the same where no ``sample_log_prob`` is given."""
        switched_off = set(self._left_out())
        if not self.entropy_bonus:
            switched_off |= {"entropy", "loss_entropy"}
        if self.critic_coef is None:
            switched_off |= {"loss_critic", "value_clip_fraction", "explained_variance"}
        if self.clip_value is None:
            switched_off.add("value_clip_fraction")
        return tuple(name for name in A2CLosses._fields if name not in switched_off)

    @out_keys.setter
    def out_keys(self, names: Sequence[str]) -> None:
        for name in names:
            _check_choice("out_keys", name, A2CLosses._fields)
        self._dropped = [name for name in A2CLosses._fields if name not in names]

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Optional[Tensor] = None,
        next_observation: Optional[Tensor] = None,
        done: Optional[Tensor] = None,
        terminated: Optional[Tensor] = None,
        advantage: Optional[Tensor] = None,
        value_target: Optional[Tensor] = None,
        state_value: Optional[Tensor] = None,
        sample_log_prob: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
        steps_to_next_obs: Optional[Tensor] = None,
        group: Optional[Tensor] = None,
        noise: Optional[Tensor] = None,
    ) -> A2CLosses:
        """The losses, with the advantage given or computed here.

        Without ``advantage``, the value estimator computes it and the value target from ``reward``, ``next_observation``, ``done`` and
        ``terminated``; a critic pass over the observations serves it and the critic loss, and one over the next observations it alone:
        no gradient reaches the critic through it.

        Args:
            observation: what the networks take, ``[*B, ...]``; a tensor, or (not in TorchScript) a tuple of tensors.
            action: ``[*B]`` or ``[*B, *event]``, as the distribution says; must not require grad.
            reward: ``[*B]`` or ``[*B, 1]``, with time where the value estimator expects it.
            next_observation: as ``observation``, the real one also where an episode ends. What is NaN in it (not known) is taken from
                ``observation``.
            done: bool, of the shape of ``reward``: the episode ended or was cut short.
            terminated: bool, the same: it ended; None for ``done``.
            advantage, value_target: ``[*B]`` or ``[*B, 1]``; ``value_target`` is needed for the critic loss.
            state_value: value of the critic when the data was made, for ``clip_value``. None, with the advantage computed here, is the
                critic's present value, as in TorchRL, and then nothing is ever clipped.
            sample_log_prob: log-probability of the action when it was taken, for V-trace.
            mask: bool, ``[*B]`` or ``[*B, 1]``: which steps count; None for all. The others keep their place in the value estimator's
                trace, but not in what it standardises; what is NaN or infinite in them is read as 0.
            steps_to_next_obs: integers of the shape of ``reward``: how many steps lie between observation and next observation.
            group: integers of the shape of ``reward`` or ``[*B]``: rewards or advantages are standardised within each group.
            noise: what the distribution makes the samples of an estimated entropy from, ``[samples_mc_entropy, *B, ...]``; None draws it.

        Returns:
            :class:`A2CLosses`; unreduced losses are ``[*B]``.

        Raises:
            ValueError: a tensor is missing or its shape is wrong, or ``action`` requires grad; the message names it.
            TypeError: a dtype is wrong.
        """
        entries = Batch(
            observation,
            reward,
            next_observation,
            done,
            terminated,
            advantage,
            value_target,
            state_value,
            sample_log_prob,
            mask,
            steps_to_next_obs,
            group,
        )
        policy, batch = self._read(entries, action)
        wants_critic = self._wants_critic()
        given = batch.advantage
        if given is None:
            estimates = self._estimated(batch, policy.log_prob, wants_critic)
        else:
            estimates = self._given(batch, given, policy.log_prob, wants_critic)
        return self._losses(policy, batch, estimates, noise)

    @torch.jit.unused
    @torch.no_grad()
    def entropy_noise(self, observation: Tensor) -> Optional[Tensor]:
        """A draw of ``noise`` as :meth:`forward` takes it; None where the entropy is not estimated from samples that noise makes."""
        distribution = self.distribution
        if not self._wants_entropy() or distribution.has_entropy or distribution.noise_kind is None:
            return None
        params = widen(self.actor_network(observation))
        return distribution.noise(distribution.repeated(params, self.samples_mc_entropy, None))

    def objective(self, log_prob: Tensor, advantage: Tensor, sample_log_prob: Optional[Tensor]) -> Tensor:
        """What the actor minimises at each step, ``[*B]`` as the arguments are; another loss over the same networks overrides this.

        One that reads ``sample_log_prob``, the log-probability of the action when it was taken, also sets ``needs_sample_log_prob``.
        All arguments are 0 where the mask leaves a step out, and so is what becomes of the result.
        """
        return a2c_objective(log_prob, advantage)

    def _losses(self, policy: PolicyOutputs, batch: Batch, estimates: Estimates, noise: Optional[Tensor]) -> A2CLosses:
        """The outputs that are wanted."""
        advantage = estimates.advantage
        if self.advantage_norm is not None:
            advantage = widen(advantage)
            advantage = advantage / self.advantage_norm.scale().to(advantage.dtype)
        dropped = self._left_out()
        entropy: Optional[Tensor] = None
        if self._wants_entropy():
            if noise is None:  # a distribution of one's own may know no noise to be given
                entropy = self.distribution.entropy_estimate(policy.params, self.samples_mc_entropy)
            else:
                entropy = self.distribution.entropy_estimate(policy.params, self.samples_mc_entropy, noise)
        check_shape("advantage", advantage, policy.log_prob)
        terms = Terms(
            policy.log_prob,
            entropy,
            estimates.new_state_value if self._wants_critic() else None,
            estimates.value_target,
            estimates.state_value,
            batch.sample_log_prob if self.diagnostics else None,
            estimates.mask,
        )
        objective: Optional[Tensor] = None
        if "loss_objective" not in dropped:
            sample_log_prob: Optional[Tensor] = None
            if self.needs_sample_log_prob:
                sample_log_prob = batch.sample_log_prob
                if sample_log_prob is None:
                    raise ValueError("sample_log_prob: expected a tensor, which the objective needs, got None")
                sample_log_prob = counted("sample_log_prob", sample_log_prob, terms)
            log_prob = counted("log_prob", policy.log_prob, terms)
            objective = self.objective(log_prob, counted("advantage", advantage, terms), sample_log_prob)
        weights = Weights(self.entropy_coef, self.critic_coef, self.clip_value, self.loss_critic_type, self.reduction)
        return weighted_losses(objective, terms, weights, dropped)

    def _left_out(self) -> List[str]:
        """Outputs that are not computed, whatever the coefficients."""
        return left_out(self._dropped, self.diagnostics)

    def _wants_entropy(self) -> bool:
        """Whether an output of the entropy is wanted."""
        return self.entropy_bonus and ("entropy" not in self._dropped or "loss_entropy" not in self._dropped)

    def _wants_critic(self) -> bool:
        """Whether anything that the critic learns from or reports is wanted."""
        dropped = self._left_out()
        clips = self.clip_value is not None and "value_clip_fraction" not in dropped
        wanted = clips or "loss_critic" not in dropped or "explained_variance" not in dropped
        return self.critic_coef is not None and wanted

    @property
    def reads_log_prob(self) -> bool:
        """Whether ``sample_log_prob`` has any influence on the outputs."""
        return self.needs_sample_log_prob or self.value_estimator.needs_log_prob or "kl_approx" in self.out_keys

    @property
    def reads_state_value(self) -> bool:
        """Whether the ``state_value`` of a rollout has any influence on the outputs: where it clips how far values move."""
        return self.clip_value is not None


def _checked_clip_value(clip_value: Optional[Union[float, Tensor]]) -> Optional[Union[float, Tensor]]:
    if clip_value is None:
        return None
    if isinstance(clip_value, Tensor):
        if clip_value.numel() != 1:
            raise ValueError(f"clip_value: expected a number or a one-element tensor, got shape {list(clip_value.shape)}")
        return clip_value.reshape([])
    if isinstance(clip_value, bool) or not isinstance(clip_value, (int, float)) or clip_value < 0:
        raise ValueError(f"clip_value: expected a number from 0 up, a one-element tensor or None, got {clip_value!r}")
    return clip_value or None


def _check_choice(name: str, value: str, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
