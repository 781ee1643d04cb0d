"""The A2C loss as a module: networks, distribution and value estimator around the objective."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar, Union

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE, positive_int
from a2c_compiled._parameters import parameter_places
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Distribution
from a2c_compiled.estimators import make_value_estimator
from a2c_compiled.estimators.registry import EstimatorKind
from a2c_compiled.functional import ValueEstimate
from a2c_compiled.functional.arguments import check_steps
from a2c_compiled.losses.a2c import A2CLosses, a2c_loss, check_mask, check_shape
from a2c_compiled.losses.advantage_norm import AdvantageNorm
from a2c_compiled.losses.batch import check_values, finite, like, optional_finite, optional_like
from a2c_compiled.losses.critic import CriticModule, CriticValues
from a2c_compiled.recurrent import has_memory

ModuleKind = TypeVar("ModuleKind", bound=nn.Module)


class Estimates(NamedTuple):
    """What the loss of a step is computed from, of the critic as it is; ``state_value`` is its own where none was given."""

    new_state_value: Tensor
    advantage: Tensor
    value_target: Tensor
    state_value: Tensor
    mask: Optional[Tensor]


class A2CLoss(CriticModule):
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
        advantage_norm: a :class:`PercentileNorm`, by whose ``scale()`` advantages are divided. In training mode it is updated with the
            value targets that are computed here; with advantages given, call ``advantage_norm.update(value_target)`` once a rollout.
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

    __jit_unused_properties__ = ["out_keys", "reads_log_prob"]

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
        super().__init__()
        actor_network = actor_network if actor is None else actor
        critic_network = critic_network if critic is None else critic
        if gamma is not None:
            raise TypeError("gamma: expected None, since it belongs to the value estimator (GAE(gamma=...)), got a value")
        _check_choice("loss_critic_type", loss_critic_type, ("l1", "l2", "smooth_l1"))
        reduction = "mean" if reduction is None else reduction
        _check_choice("reduction", reduction, ("mean", "sum", "none"))
        if samples_mc_entropy < 1:
            raise ValueError(f"samples_mc_entropy: expected at least 1, got {samples_mc_entropy}")
        self.actor_network: nn.Module = _checked("actor_network", actor_network, nn.Module)
        self.critic_network: nn.Module = _checked("critic_network", critic_network, nn.Module)
        self.distribution: Distribution = _checked("distribution", distribution, Distribution)
        if value_chunk_size is not None and num_chunks is not None:
            raise ValueError(f"num_chunks: expected None beside value_chunk_size, got {num_chunks}")
        if shifted and target_critic_network is not None:
            raise ValueError("shifted: expected False with a target_critic_network, which is another network, got True")
        self.value_chunk_size = 0 if value_chunk_size is None else positive_int("value_chunk_size", value_chunk_size)
        self.num_chunks = 0 if num_chunks is None else positive_int("num_chunks", num_chunks)
        if has_memory(self.critic_network) and (self.value_chunk_size or self.num_chunks):
            raise ValueError(
                "value_chunk_size, num_chunks: expected None for a critic with memory, whose steps follow each other"
            )
        self.shifted = shifted
        self.shifted_budget = positive_int("shifted_budget", shifted_budget)
        self.advantage_norm = None if advantage_norm is None else _checked("advantage_norm", advantage_norm, AdvantageNorm)
        self.target_critic_network = None
        if target_critic_network is not None:
            target = _checked("target_critic_network", target_critic_network, nn.Module)
            learning = {
                id(parameter) for network in (self.actor_network, self.critic_network) for parameter in network.parameters()
            }
            if any(id(parameter) in learning for parameter in target.parameters()):
                raise ValueError(
                    "target_critic_network: expected parameters of its own, as copy.deepcopy(critic_network) has, got some of those that"
                    " learn"
                )
            self.target_critic_network = target.requires_grad_(False)
        self.diagnostics = diagnostics
        self.loss_critic_type = loss_critic_type
        self.reduction = reduction
        self.samples_mc_entropy = samples_mc_entropy
        self.separate_losses = separate_losses
        self.register_coefficient("entropy_coef", entropy_coef, scalar=True)
        self.register_coefficient("critic_coef", critic_coef, optional=True, scalar=True)
        self.register_coefficient("clip_value", _checked_clip_value(clip_value), NOT_NEGATIVE, optional=True, scalar=True)
        self.entropy_bonus = bool(entropy_bonus and self.entropy_coef != 0)
        self._move_coefficients()
        self.make_value_estimator(value_estimator)
        self._dropped = []
        actors = {id(parameter) for parameter in self.actor_network.parameters()}
        shared = {name for name, parameter in self.critic_network.named_parameters() if id(parameter) in actors}
        self._held_out: List[str] = [
            place for place, name in parameter_places(self.critic_network).items() if separate_losses and name in shared
        ]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("entropy_coeff", "critic_coeff"):
            raise AttributeError(f"{name}: spelt {name[:-1]} here")
        super().__setattr__(name, value)

    def _move_coefficients(self) -> None:
        """To the device of the actor network, leaving the networks where they are."""
        device = next((parameter.device for parameter in self.actor_network.parameters()), torch.device("cpu"))
        if device.type != "meta":
            for name, coefficient in self._buffers.items():
                self._buffers[name] = None if coefficient is None else coefficient.to(device)
            self.distribution.to(device)
            if self.advantage_norm is not None:
                self.advantage_norm.to(device)

    def make_value_estimator(self, value_type: Optional[EstimatorKind] = None, **hyperparams: Any) -> "A2CLoss":
        """Choose the value estimator, as :func:`a2c_compiled.estimators.make_value_estimator` describes; returns the loss."""
        self.value_estimator = make_value_estimator(value_type, **hyperparams).to(self.entropy_coef.device)
        return self

    @property
    def out_keys(self) -> Tuple[str, ...]:
        """Names of the outputs that are not None, in order; ``kl_approx`` is one all the same where no ``sample_log_prob`` is given."""
        switched_off = set(self._dropped)
        if not self.entropy_bonus:
            switched_off |= {"entropy", "loss_entropy"}
        if self.critic_coef is None:
            switched_off |= {"loss_critic", "value_clip_fraction", "explained_variance"}
        if self.clip_value is None:
            switched_off.add("value_clip_fraction")
        if not self.diagnostics:
            switched_off |= {"explained_variance", "kl_approx"}
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

        Returns:
            :class:`A2CLosses`; unreduced losses are ``[*B]``.

        Raises:
            ValueError: a tensor is missing or its shape is wrong, or ``action`` requires grad; the message names it.
            TypeError: a dtype is wrong.
        """
        if not isinstance(action, Tensor):
            raise TypeError(f"action: expected a tensor, got {type(action)}")
        if action.requires_grad:
            raise ValueError("action: expected a tensor that does not require grad, got one that does")
        if mask is not None:
            check_mask(mask)
            observation, action = finite("observation", observation, mask), finite("action", action, mask)
            reward = optional_finite("reward", reward, mask)
            next_observation = optional_finite("next_observation", next_observation, mask)
            sample_log_prob = optional_finite("sample_log_prob", sample_log_prob, mask)
        params = widen(self.actor_network(observation))
        log_prob = self.distribution.log_prob(params, action)

        with_critic = self.critic_coef is not None and not self._critic_is_unwanted()
        new_state_value: Optional[Tensor] = None
        if advantage is None:
            estimated = self._estimated(
                observation,
                reward,
                next_observation,
                done,
                terminated,
                log_prob,
                state_value,
                sample_log_prob,
                mask,
                steps_to_next_obs,
                group,
                with_critic,
            )
            advantage, value_target, mask = estimated.advantage, estimated.value_target, estimated.mask
            new_state_value, state_value = estimated.new_state_value, estimated.state_value
        elif with_critic:
            new_state_value = self.critic(observation, True)
            check_values(new_state_value, log_prob, "the actions")
        advantage, mask = like(advantage, log_prob), optional_like(mask, log_prob)
        value_target = optional_like(value_target, log_prob)
        if mask is not None:
            check_shape("mask", mask, log_prob)
        if self.advantage_norm is not None:
            advantage = widen(advantage)
            advantage = advantage / self.advantage_norm.scale().to(advantage.dtype)

        entropy: Optional[Tensor] = None
        if self.entropy_bonus and not ("entropy" in self._dropped and "loss_entropy" in self._dropped):
            entropy = self.distribution.entropy_estimate(params, self.samples_mc_entropy)
        losses = a2c_loss(
            log_prob,
            advantage,
            entropy,
            optional_like(new_state_value if with_critic else None, log_prob),
            value_target,
            optional_like(state_value, log_prob),
            self.entropy_coef,
            self.critic_coef,
            self.clip_value,
            self.loss_critic_type,
            self.reduction,
            mask,
            optional_like(sample_log_prob, log_prob) if self.diagnostics else None,
            self.diagnostics,
        )
        return A2CLosses(
            None if "loss_objective" in self._dropped else losses.loss_objective,
            None if "loss_critic" in self._dropped else losses.loss_critic,
            None if "entropy" in self._dropped else losses.entropy,
            None if "loss_entropy" in self._dropped else losses.loss_entropy,
            None if "value_clip_fraction" in self._dropped else losses.value_clip_fraction,
            None if "explained_variance" in self._dropped else losses.explained_variance,
            None if "kl_approx" in self._dropped else losses.kl_approx,
        )

    @torch.jit.unused
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
        """What :meth:`forward` computes the losses from, without gradient: given to it, of some of the steps, it gives their losses.

        Not in TorchScript.
        """
        with torch.no_grad():
            if mask is not None:
                check_mask(mask)
                observation, action = finite("observation", observation, mask), finite("action", action, mask)
                reward = optional_finite("reward", reward, mask)
                next_observation = optional_finite("next_observation", next_observation, mask)
                sample_log_prob = optional_finite("sample_log_prob", sample_log_prob, mask)
            log_prob = self.distribution.log_prob(widen(self.actor_network(observation)), action)
            estimated = self._estimated(
                observation,
                reward,
                next_observation,
                done,
                terminated,
                log_prob,
                state_value,
                sample_log_prob,
                mask,
                steps_to_next_obs,
                group,
                False,
            )
            return estimated._replace(mask=optional_like(estimated.mask, log_prob))

    def _estimated(
        self,
        observation: Tensor,
        reward: Optional[Tensor],
        next_observation: Optional[Tensor],
        done: Optional[Tensor],
        terminated: Optional[Tensor],
        log_prob: Tensor,
        state_value: Optional[Tensor],
        sample_log_prob: Optional[Tensor],
        mask: Optional[Tensor],
        steps_to_next_obs: Optional[Tensor],
        group: Optional[Tensor],
        with_critic: bool,
    ) -> Estimates:
        if reward is None:
            raise ValueError("reward: expected a tensor where no advantage is given, got None")
        if next_observation is None:
            raise ValueError("next_observation: expected a tensor where no advantage is given, got None")
        if done is None:
            raise ValueError("done: expected a tensor where no advantage is given, got None")
        if self.shifted and steps_to_next_obs is not None:
            raise ValueError(
                "steps_to_next_obs: expected None with shifted, which reads the next step's observation, got a tensor"
            )
        values = self._values(observation, next_observation, reward, done, terminated, log_prob, with_critic)
        kept, last = values.kept, values.last
        if kept is not None and last is not None:
            mask = kept if mask is None else like(mask, log_prob) & kept
            # The trace ends with the last step whose next value is known.
            terminated = done if terminated is None else terminated
            done = done | like(last, done)
        estimate = self._estimate(values, reward, done, terminated, log_prob, sample_log_prob, steps_to_next_obs, group, mask)
        if self.advantage_norm is not None:  # noqa: SIM102 - TorchScript would look for what there is not
            if self.advantage_norm.training:
                self.advantage_norm.update(like(estimate.value_target, log_prob), optional_like(mask, log_prob))
        old_value = values.state_value.detach() if state_value is None else state_value
        return Estimates(values.state_value, estimate.advantage, estimate.value_target, old_value, mask)

    def _critic_is_unwanted(self) -> bool:
        """Whether all that the critic learns from or reports is filtered out."""
        clipped = self.clip_value is not None and "value_clip_fraction" not in self._dropped
        explained = self.diagnostics and "explained_variance" not in self._dropped
        return "loss_critic" in self._dropped and not clipped and not explained

    @property
    def reads_log_prob(self) -> bool:
        """Whether ``sample_log_prob`` has any influence on the outputs."""
        return self.value_estimator.needs_log_prob or "kl_approx" in self.out_keys

    def _values(
        self,
        observation: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor],
        log_prob: Tensor,
        with_critic: bool,
    ) -> CriticValues:
        """Values of both observations."""
        time_dim = self.value_estimator.time_dim
        if reward.dim() > 0:
            time_dim = time_dim % reward.dim()
        if self.shifted:
            if self.value_estimator.several_agents:
                raise ValueError("shifted: expected False with a value estimator of several agents, got True")
            check_steps(reward, {"done": done}, {}, terminated)
        ends = done if terminated is None else terminated
        values = self.critic_values(
            observation, next_observation, reward, like(done, log_prob), like(ends, log_prob), time_dim, with_critic
        )
        if not self.value_estimator.several_agents:
            check_values(values.state_value, reward, "reward")
        return values

    def _estimate(
        self,
        values: CriticValues,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor],
        log_prob: Tensor,
        sample_log_prob: Optional[Tensor],
        steps_to_next_obs: Optional[Tensor],
        group: Optional[Tensor],
        mask: Optional[Tensor],
    ) -> ValueEstimate:
        """Advantage and value target, with no gradient to either network."""
        value, next_value = widen(values.state_value.detach()), widen(values.next_state_value.detach())
        if not self.value_estimator.several_agents:
            value, next_value = like(value, reward), like(next_value, reward)
        # In the networks' precision: environments hand over float64 rewards.
        if reward.is_floating_point():
            reward = reward.to(value.dtype)
        log_pi: Optional[Tensor] = None
        log_mu: Optional[Tensor] = None
        if self.value_estimator.needs_log_prob:
            if sample_log_prob is None:
                raise ValueError("sample_log_prob: expected a tensor, which the value estimator needs, got None")
            log_pi = like(log_prob.detach(), reward).to(reward.dtype)
            log_mu = like(sample_log_prob, reward).to(reward.dtype)
        return self.value_estimator(
            value,
            next_value,
            reward,
            done,
            terminated,
            log_pi,
            log_mu,
            optional_like(steps_to_next_obs, reward),
            group,
            optional_like(mask, value),
        )


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


def _checked(name: str, module: Any, kind: Type[ModuleKind]) -> ModuleKind:
    if not isinstance(module, kind):
        raise TypeError(f"{name}: expected a module of the kind {kind.__name__}, got {type(module).__name__}")
    return module


def _check_choice(name: str, value: str, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
