"""The A2C loss as a module: it holds the networks, the action distribution and the value estimator."""

from typing import Any, List, Optional, Sequence, Tuple, Union, cast

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE, positive_int
from a2c_compiled._kinds import check_observation, check_tensor, flag
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Composite, Distribution
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.losses.a2c import (
    A2CLosses,
    Terms,
    Weights,
    a2c_objective,
    switched_off_outputs,
    weighted_losses,
    zero_outside_mask,
)
from a2c_compiled.losses.actor_critic import PolicyOutputs
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import Batch, mask_of_values
from a2c_compiled.losses.estimation import Estimates, EstimatingActorCritic
from a2c_compiled.losses.value_norm import PopArt


class A2CLoss(EstimatingActorCritic):
    r"""Advantage actor-critic (A2C) loss for an actor network, a critic network and an action distribution.

    .. math::
        L_\text{objective} &= -\log\pi(a_t|s_t)\, A_t \\
        L_\text{critic} &= c_\text{critic}\, \ell(G_t, V(s_t)) \\
        L_\text{entropy} &= -c_\text{entropy}\, H(\pi(\cdot|s_t))

    Minimize the sum of the three losses, each averaged over the steps:

    >>> loss = A2CLoss(actor, critic, distributions.Categorical(4))
    >>> losses = loss(observation, action, reward=reward, next_observation=next_observation, done=done, terminated=terminated)
    >>> losses.total.backward()

    A value estimator computes the advantage :math:`A` and the value target :math:`G` from the rollout. The default is GAE. You can
    also compute :math:`A` and :math:`G` yourself and pass both to :meth:`forward`.

    Shapes, with ``[*B]`` for the batch shape, usually ``[T, N]`` (time, environments):

    * an observation is a tensor ``[*B, ...]`` or, except in TorchScript, a tuple of such tensors;
    * the actor network maps an observation to the distribution parameters, floating, ``[*B, distribution.num_params]``;
    * the critic network maps an observation to the values, floating, ``[*B, 1]`` or ``[*B]``.

    With a value estimator of several agents, :class:`~a2c_compiled.estimators.MultiAgentGAE` (``"magae"``), the log-probability has the
    shape ``[N, T, K]``: its last dimension is that of the ``K`` agents. Each tensor below may have any of the shapes in its row:

    =====================================================================  ============================  ========================
    tensor                                                                 of each agent                 of the team
    =====================================================================  ============================  ========================
    reward, done, terminated, mask, steps_to_next_obs, group, advantage,   [N, T, K] or [N, T, K, 1]     [N, T] or [N, T, 1]
    value_target, state_value, the critic's values
    sample_log_prob                                                        [N, T, K] or [N, T, K, 1]     no
    action                                                                 [N, T, K] or [N, T, K, dim]   no
    observation, or a part of a tuple                                      [N, T, K, ...]                [N, T, F], [N, T, 1, ...]
    =====================================================================  ============================  ========================

    Each agent receives the entry of the team. The estimator's ``time_dim=-3`` and ``agent_dim=-2`` count in ``[N, T, K, 1]``; use
    ``time_dim=-4`` for ``[T, N, K]``. If one of the two is -1, both count in ``[N, T, K]``.

    A central critic returns one value of the team. Rewards, flags, ``steps_to_next_obs`` and value targets are then those of the team,
    and each agent receives the team's advantage. The critic loss is over ``[N, T]``, with the shape ``[N, T, 1]`` for
    ``reduction="none"``. A step counts for it if ``mask`` counts the step of any agent.

    Both networks become submodules of the loss and are not copied. They may share modules. The loss computes the layers with which both
    begin once, if it gets an :class:`~a2c_compiled.ActorCritic`, or if both networks are plain ``nn.Sequential`` and begin with the same
    modules, without hooks: see :mod:`a2c_compiled.shared_trunk`.

    The coefficients ``entropy_coef``, ``critic_coef`` and ``clip_value``, and the value estimator's ``gamma`` and ``lmbda``, are buffers.
    You can assign a number at any time, for example ``loss.entropy_coef = 0.001``; this needs no recompilation. Assign names to
    ``out_keys`` to compute only these outputs.

    Args:
        actor_network: maps an observation to the distribution parameters; or an :class:`~a2c_compiled.ActorCritic`, then without a
            ``critic_network``. ``actor`` is an alias and takes precedence.
        critic_network: maps an observation to the values. ``critic`` is an alias and takes precedence.
        distribution: the action distribution, one of :mod:`a2c_compiled.distributions`.
        value_estimator: any value that :func:`~a2c_compiled.estimators.make_value_estimator` accepts. None means GAE with ``gamma=0.99``
            and ``lmbda=0.95``.
        entropy_coef: :math:`c_\text{entropy}`, a number or a one-element tensor. 0 at construction switches off both entropy outputs
            permanently; start with a small positive number if you want to raise the coefficient later. A sequence of numbers or a
            one-dimensional tensor: one coefficient for each head of a :class:`~a2c_compiled.distributions.Composite`, in their order.
            :math:`L_\text{entropy}` is then :math:`-\sum_i c_i H_i`; the output ``entropy`` is still the entropy of the whole action.
        critic_coef: :math:`c_\text{critic}`, a number or a one-element tensor. None switches off all critic outputs.
        loss_critic_type: :math:`\ell`: ``"l1"``, ``"l2"`` or ``"smooth_l1"`` (quadratic up to a distance of 1, linear beyond).
        entropy_bonus: False switches off both entropy outputs.
        samples_mc_entropy: number of samples in the Monte-Carlo estimate of an entropy that has no closed form.
        separate_losses: if True, the critic loss has no gradient for parameters that actor and critic share. A trunk that is computed once
            ends in a detached tensor for the critic.
        functional: ignored; TorchRL's ``A2CLoss`` has this argument. You can always use ``torch.func.functional_call`` on the loss;
            pass ``tie_weights=False`` if the networks share modules, because otherwise torch leaves the given tensors in the modules.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. None means ``"mean"``.
        clip_value: largest change of the value since the rollout that lowers the critic loss, a number or a one-element tensor; see
            :func:`~a2c_compiled.losses.a2c_loss`. None or 0 means no clipping.
        gamma: must be None. Pass the discount factor to the value estimator.
        actor, critic: aliases of ``actor_network`` and ``critic_network``.
        advantage_norm: a :class:`~a2c_compiled.losses.PercentileNorm`, a :class:`~a2c_compiled.losses.RunningNorm` or another
            :class:`~a2c_compiled.losses.AdvantageNorm`. The loss normalises advantages with it. In training mode, each call that computes
            value targets also updates the norm. If you pass advantages, call ``advantage_norm.update(value_target)`` once per rollout, or
            ``update(advantage)`` of a RunningNorm.
        shifted: if True, the critic runs once on ``T + shifted_budget`` observations instead of ``2 * T``. The option requires that the
            next observation of a step is the observation of the next step, except at ``done`` steps. n-step data does not fulfil this
            requirement. A trunk that actor and critic share runs on the observations, for both, and without gradient on the next ones.
        shifted_budget: number of next observations, per trajectory, that the one pass can hold. The last step uses one; each truncated
            step before the last one uses another. If a trajectory has more, it ends earlier: its last steps do not count.
        value_chunk_size: largest number of leading entries of the observations in one call of the critic, to save memory. None: no limit.
        num_chunks: number of calls among which the leading entries are divided; not together with ``value_chunk_size``. Exported graphs
            ignore both options and run the critic once.
        target_critic_network: network that evaluates the next observations instead of the critic network. This network must not share
            parameters with the other networks. The loss sets ``requires_grad=False`` for its parameters. For soft updates use
            ``torch.optim.swa_utils.AveragedModel``.
        diagnostics: whether to compute also ``explained_variance`` and, if ``sample_log_prob`` is given, ``kl_approx``.
        value_norm: the :class:`~a2c_compiled.losses.PopArt` at the end of the critic network. The critic loss compares normalised values
            with normalised value targets; ``clip_value`` is in the normalised scale too. In training mode, each call that computes value
            targets also updates the norm, before it computes the losses; this takes one more pass of the critic, without gradient. If you
            pass advantages, call ``value_norm.update(value_target)`` once per rollout. Not together with ``target_critic_network``.

    Raises:
        TypeError: an argument is missing or has a wrong type, or ``gamma`` is not None.
        ValueError: an option has an unknown value, a number is out of range, or two options exclude each other.

    Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016; TorchRL's ``A2CLoss``.
    """

    __jit_unused_properties__ = ["out_keys", "reads_log_prob", "reads_state_value"]
    # TorchScript lets subclasses inherit __constants__, but not Final annotations.
    __constants__ = ["needs_sample_log_prob"]

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
        entropy_coef: Union[float, Tensor, Sequence[float]] = 0.01,
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
        value_norm: Optional[PopArt] = None,
    ) -> None:
        super().__init__(
            advantage_norm,
            value_norm,
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
        self.diagnostics = flag("diagnostics", diagnostics)
        self.loss_critic_type = loss_critic_type
        self.reduction = reduction
        self.samples_mc_entropy = positive_int("samples_mc_entropy", samples_mc_entropy)
        of_heads = self._coef_of_each_head(entropy_coef)
        if of_heads is None:
            self.register_coefficient("entropy_coef", cast(Union[float, Tensor], entropy_coef), scalar=True)
        else:
            self.register_coefficient("entropy_coef", of_heads)
        self.register_coefficient("critic_coef", critic_coef, optional=True, scalar=True)
        self.register_coefficient("clip_value", clip_value, NOT_NEGATIVE, optional=True, scalar=True)
        if not isinstance(clip_value, Tensor) and self.clip_value == 0:  # no clipping, as with None
            self.clip_value = None
        self.entropy_bonus = flag("entropy_bonus", entropy_bonus) and bool((self.entropy_coef != 0).any())
        # Move everything except the networks to the device of the actor network.
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
        """Raises AttributeError for TorchRL's ``entropy_coeff`` and ``critic_coeff``, which would be attributes without effect."""
        if name in ("entropy_coeff", "critic_coeff"):
            raise AttributeError(f"{name}: use {name[:-1]}")
        if name == "entropy_coef" and "entropy_coef" in self._buffers:
            of_heads = self._coef_of_each_head(value)
            if of_heads is not None:
                if self.entropy_coef.shape != of_heads.shape:
                    raise ValueError(f"entropy_coef: expected a number, as at construction, got {value!r}")
                with torch.no_grad():
                    self.entropy_coef.copy_(of_heads)
                return
        super().__setattr__(name, value)

    @torch.jit.unused
    def _coef_of_each_head(self, value: Any) -> Optional[Tensor]:
        """Returns a sequence or a one-dimensional tensor of coefficients as a tensor, ``[heads]``; None for any other ``value``.

        Raises ValueError if the distribution has another number of heads.
        """
        if isinstance(value, (list, tuple)):
            value = torch.tensor([float(coef) for coef in value], dtype=torch.float64)
        if not isinstance(value, Tensor) or value.dim() != 1 or value.numel() == 1:
            return None
        heads = len(self.distribution.heads) if isinstance(self.distribution, Composite) else 1
        if value.numel() != heads:
            raise ValueError(
                f"entropy_coef: expected a number or one for each head of the distribution, {heads}, got {value.tolist()}"
            )
        return value

    @property
    def out_keys(self) -> Tuple[str, ...]:
        """Names of the outputs that the loss computes, in the order of :class:`A2CLosses`; all other outputs are None.

        With ``diagnostics``, the names include ``kl_approx``, although this output is None in calls without ``sample_log_prob``. Assign a
        sequence of names to compute only these outputs. An unknown name raises ValueError.
        """
        switched_off = set(self._switched_off_outputs())
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
        cu_seqlens: Optional[Tensor] = None,
    ) -> A2CLosses:
        """Computes the losses of a batch. There are two ways to call this method.

        * With a rollout: pass ``reward``, ``next_observation``, ``done`` and, if episodes can be truncated, ``terminated``. The value
          estimator computes advantage and value target, without gradient. The critic runs on the observations, once for the estimator
          and the critic loss together, and on the next observations, without gradient (in one pass with ``shifted``).
        * With advantages: pass ``advantage`` and, for the critic loss, ``value_target``. The loss then reads neither the arguments of the
          first way nor ``steps_to_next_obs`` and ``group``.

        The batch shape ``[*B]`` is the shape of the log-probability. Tensors with the shape ``[*B]`` below, except ``action``, may also
        have the shape ``[*B, 1]``. ``reward``, ``done`` and ``terminated`` must have one shape. The ``time_dim`` of the value
        estimator refers to this one shape: the default -2 fits ``[T, N]`` and ``[N, T, 1]``. Shapes with several agents: see the table in
        :class:`A2CLoss`.

        Args:
            observation: ``[*B, ...]``: input of the networks; a tensor or, except in TorchScript, a tuple of tensors.
            action: ``[*B]`` or ``[*B, dim]``, with the dtype and shape that the distribution expects; must not require grad.
                Not read at the steps that ``mask`` excludes.
            reward: ``[*B]``, floating.
            next_observation: shape and dtype of ``observation``. At a ``done`` step it is the last observation before the reset. NaN
                means unknown: the loss reads the entry of ``observation`` instead. With size 1 along time, it is the observation after
                the last step alone, and the next observation of each other step is the observation of the step after it, also where
                ``mask`` excludes that step: the rollouts of gymnasium's autoreset mode NEXT_STEP. The critic then computes T + 1
                values, not 2 T. Not with recurrent networks, several agents, ``cu_seqlens`` and ``steps_to_next_obs``.
            done: ``[*B]``, bool: True at the last step of an episode, terminated or truncated; the trace ends there.
            terminated: ``[*B]``, bool: True if the step reached a terminal state; its return then does not bootstrap. None means
                ``terminated = done``.
            advantage: ``[*B]``, floating: advantage. The loss detaches it.
            value_target: ``[*B]``, floating: value target. The loss detaches it. Only read with ``advantage``.
            state_value: ``[*B]``, floating: value at the time of the rollout, for ``clip_value``. If neither ``state_value`` nor
                ``advantage`` is passed, the loss uses the current value, as TorchRL does, and clips nothing.
            sample_log_prob: ``[*B]``, floating: log-probability of the action when it was sampled, for V-trace and ``kl_approx``.
            mask: ``[*B]``, bool: steps that count. None: all steps count. Losses and gradients equal those of the data without the other
                steps: the trace of the value estimator ends before them, see :mod:`a2c_compiled.functional`. Feed-forward networks do see
                their observations, with 0 in place of NaN and infinity. To leave real steps out of the loss alone, compute advantages
                without a mask with :meth:`estimates`, and pass them with the mask.
            steps_to_next_obs: shape of ``reward``, integer: number of environment steps between observation and next observation.
            group: shape of ``reward`` or ``[*B]``, integer: rewards or advantages are standardised within each group.
            noise: ``[samples_mc_entropy, *B, ...]``, floating: noise of the samples of a Monte-Carlo entropy, see :meth:`entropy_noise`.
                None: the loss draws the noise.
            cu_seqlens: ``[S + 1]``, int32 or int64: the start of each of ``S`` packed sequences along time, then T. Each sequence ends like
                a truncated episode, and recurrent networks start it from the recorded hidden state. See :mod:`a2c_compiled.functional`.

        Returns:
            :class:`A2CLosses`. The losses are scalars, or ``[*B]`` with ``reduction="none"``.

        Raises:
            ValueError: a required tensor is None, a shape or device is wrong, ``action`` requires grad, or the distribution lacks an
                action of a step that counts (other modes: see :meth:`a2c_compiled.distributions.Distribution.log_prob`).
            TypeError: an argument has a wrong type or dtype.
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
            cu_seqlens=cu_seqlens,
        )
        if noise is not None:
            check_tensor("noise", noise)
        policy, batch = self._read(entries, action)
        wants_critic = self._wants_critic()
        shaped_advantage = batch.advantage
        if shaped_advantage is None:
            estimates = self._estimated(batch, policy.log_prob, wants_critic)
        else:
            estimates = self._given(batch, shaped_advantage, policy.log_prob, wants_critic)
        return self._losses(policy, batch, estimates, noise)

    @torch.jit.unused
    @torch.no_grad()
    def entropy_noise(self, observation: Tensor) -> Optional[Tensor]:
        """Draws the argument ``noise`` of :meth:`forward`, with the shape ``[samples_mc_entropy, *B, ...]`` and a floating dtype.

        Returns None if the loss does not estimate the entropy from samples, or if the distribution does not sample from noise.

        Args:
            observation: ``[*B, ...]``: input of the actor network.

        Raises:
            TypeError: ``observation`` is neither a tensor nor a tuple of tensors.
        """
        check_observation("observation", observation)
        distribution = self.distribution
        if not self._wants_entropy() or distribution.has_entropy or distribution.noise_kind is None:
            return None
        params = widen(self.actor_network(observation))
        return distribution.noise(distribution.repeated(params, self.samples_mc_entropy, None))

    def objective(self, log_prob: Tensor, advantage: Tensor, sample_log_prob: Optional[Tensor]) -> Tensor:
        """Computes the policy loss of each step, here ``-log_prob * advantage``. Override it to implement another objective.

        Args:
            log_prob: ``[*B]``, floating: log-probability of the action under the current policy.
            advantage: ``[*B]``, floating.
            sample_log_prob: ``[*B]``, floating: log-probability of the action when it was sampled. The argument is None unless the
                subclass sets ``needs_sample_log_prob = True``.

        Returns:
            The loss of each step, ``[*B]``, before reduction.

        All arguments are 0 at the steps that the mask excludes. The loss also sets the result to 0 at these steps.
        """
        return a2c_objective(log_prob, advantage)

    def _losses(self, policy: PolicyOutputs, batch: Batch, estimates: Estimates, noise: Optional[Tensor]) -> A2CLosses:
        """Computes the outputs that are switched on; the others are None."""
        advantage = estimates.advantage
        if self.advantage_norm is not None:
            advantage = self.advantage_norm.normalize(advantage)
        dropped = self._switched_off_outputs()
        entropy: Optional[Tensor] = None
        if self._wants_entropy():
            if self.entropy_coef.dim() == 1:
                entropy = self.distribution.head_entropies(policy.params, self.samples_mc_entropy, noise)
            elif noise is None:  # a user's distribution may override entropy_estimate without the argument noise
                entropy = self.distribution.entropy_estimate(policy.params, self.samples_mc_entropy)
            else:
                entropy = self.distribution.entropy_estimate(policy.params, self.samples_mc_entropy, noise)
        new_state_value = estimates.new_state_value if self._wants_critic() else None
        value_mask = estimates.mask
        if new_state_value is not None:
            value_mask = mask_of_values(value_mask, new_state_value, batch.agent)
        terms = Terms(
            policy.log_prob,
            entropy,
            self._normalized(new_state_value),
            self._normalized(estimates.value_target),
            self._normalized(estimates.state_value),
            batch.sample_log_prob if self.diagnostics else None,
            estimates.mask,
            value_mask,
        )
        objective: Optional[Tensor] = None
        if "loss_objective" not in dropped:
            sample_log_prob: Optional[Tensor] = None
            if self.needs_sample_log_prob:
                sample_log_prob = batch.sample_log_prob
                if sample_log_prob is None:
                    raise ValueError("sample_log_prob: expected a tensor, which the objective needs, got None")
                sample_log_prob = zero_outside_mask("sample_log_prob", sample_log_prob, terms)
            log_prob = zero_outside_mask("log_prob", policy.log_prob, terms)
            objective = self.objective(log_prob, zero_outside_mask("advantage", advantage, terms), sample_log_prob)
        weights = Weights(self.entropy_coef, self.critic_coef, self.clip_value, self.loss_critic_type, self.reduction)
        return weighted_losses(objective, terms, weights, dropped)

    def _normalized(self, value: Optional[Tensor]) -> Optional[Tensor]:
        """Returns ``value`` in the scale of the critic loss."""
        if self.value_norm is not None:  # noqa: SIM102 - TorchScript would compile the call although there is no norm
            if value is not None:
                return self.value_norm.normalize(value)
        return value

    def _switched_off_outputs(self) -> List[str]:
        """Returns the outputs that ``out_keys`` and ``diagnostics`` switch off."""
        return switched_off_outputs(self._dropped, self.diagnostics)

    def _wants_entropy(self) -> bool:
        """Returns whether an entropy output is switched on."""
        return self.entropy_bonus and ("entropy" not in self._dropped or "loss_entropy" not in self._dropped)

    def _wants_critic(self) -> bool:
        """Returns whether an output that needs the critic's value is switched on."""
        dropped = self._switched_off_outputs()
        clips = self.clip_value is not None and "value_clip_fraction" not in dropped
        wanted = clips or "loss_critic" not in dropped or "explained_variance" not in dropped
        return self.critic_coef is not None and wanted

    @property
    def reads_log_prob(self) -> bool:
        """Whether the outputs depend on ``sample_log_prob``."""
        return self.needs_sample_log_prob or self.value_estimator.needs_log_prob or "kl_approx" in self.out_keys

    @property
    def reads_state_value(self) -> bool:
        """Whether the outputs depend on the ``state_value`` of a rollout: only if ``clip_value`` is set."""
        return self.clip_value is not None


def _check_choice(name: str, value: str, choices: Tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
