"""The A2C losses as a function of tensors. TorchScript compiles this file."""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._exporting import is_exporting
from a2c_compiled._hyperparameters import single
from a2c_compiled._kinds import check_mask, check_real, check_tensors, flag, number_or_tensor
from a2c_compiled._precision import clamped_log_ratio, widen
from a2c_compiled.functional.arguments import Coefficient


class A2CLosses(NamedTuple):
    """Result of :class:`~a2c_compiled.A2CLoss`. A field is None if the output is switched off or an input for it was not passed.

    Minimize :attr:`total`, the sum of the ``loss_*`` fields. These losses are scalars, or ``[*B]`` with ``reduction="none"``. The other
    fields are detached scalars for logging. All fields are floating: float32 for float16 and bfloat16 inputs.

    Fields:
        loss_objective: policy loss, ``-log_prob * advantage``.
        loss_critic: critic loss, ``critic_coef`` times the distance between value target and value.
        entropy: mean entropy of the policy.
        loss_entropy: entropy loss, ``-entropy_coef * entropy``.
        value_clip_fraction: fraction of the steps at which ``clip_value`` limits the change of the value.
        explained_variance: ``1 - Var(value_target - value) / Var(value_target)``.
        kl_approx: estimate of the KL divergence between the policy that collected the data and the current policy.
    """

    loss_objective: Optional[Tensor] = None
    loss_critic: Optional[Tensor] = None
    entropy: Optional[Tensor] = None
    loss_entropy: Optional[Tensor] = None
    value_clip_fraction: Optional[Tensor] = None
    explained_variance: Optional[Tensor] = None
    kl_approx: Optional[Tensor] = None

    @property
    def total(self) -> Tensor:
        """The sum of the losses that are not None, the tensor to minimize: a scalar, or ``[*B]`` with ``reduction="none"``; floating.

        The result of a loss in TorchScript does not have this property.

        Raises:
            ValueError: every loss is None, or, with ``reduction="none"``, the losses of one value for several agents have other shapes.
        """
        return total_loss(self)


LOSSES = tuple(name for name in A2CLosses._fields if name.startswith("loss_"))
"""Names of the outputs to minimize."""


def total_loss(losses: A2CLosses) -> Tensor:
    """Returns :attr:`A2CLosses.total`."""
    present = [getattr(losses, name) for name in LOSSES if getattr(losses, name) is not None]
    if not present:
        raise ValueError("loss: expected out_keys with a loss_* name to minimise, got none")
    if any(loss.shape != present[0].shape for loss in present):
        raise ValueError(
            f"total: expected losses of one shape, got {[list(loss.shape) for loss in present]} (reduce them first)"
        )
    return sum(present[1:], present[0])


def a2c_loss(
    log_prob: Tensor,
    advantage: Tensor,
    entropy: Optional[Tensor] = None,
    new_state_value: Optional[Tensor] = None,
    value_target: Optional[Tensor] = None,
    state_value: Optional[Tensor] = None,
    entropy_coef: Optional[Coefficient] = None,
    critic_coef: Optional[Coefficient] = None,
    clip_value: Optional[Coefficient] = None,
    loss_critic_type: str = "smooth_l1",
    reduction: str = "mean",
    mask: Optional[Tensor] = None,
    sample_log_prob: Optional[Tensor] = None,
    diagnostics: bool = False,
) -> A2CLosses:
    r"""Computes the losses of advantage actor-critic (A2C).

    .. math::
        L_\text{objective} &= -\log\pi(a_t|s_t)\, A_t \\
        L_\text{entropy} &= -c_\text{entropy}\, H_t \\
        L_\text{critic} &= c_\text{critic}\, \ell(G_t, V(s_t))

    :math:`\ell` is the distance that ``loss_critic_type`` selects. With a ``clip_value`` :math:`c` it becomes
    :math:`\max\big(\ell(G, V),\ \ell(G, V_\text{old} + \operatorname{clip}(V - V_\text{old}, -c, c))\big)`.

    Args:
        log_prob: ``[*B]``, floating: log-probability of the action under the current policy. ``*B`` is any batch shape. All tensors
            below with one entry per step have this shape.
        advantage: ``[*B]``, floating: :math:`A`. Pass it detached; the function does not detach it.
        entropy: ``[*B]``, floating: entropy :math:`H` of the policy. With one coefficient for each head of a composite action,
            ``[*B, heads]``: the entropy of each head. None switches off both entropy outputs.
        new_state_value: ``[*B]``, floating: value :math:`V(s)` of the critic that is trained. None switches off the critic outputs.
        value_target: ``[*B]``, floating: value target :math:`G`. Required with ``new_state_value``.
        state_value: ``[*B]``, floating: value :math:`V_\text{old}` at the time of the rollout. Required with ``clip_value``.
        entropy_coef: :math:`c_\text{entropy}`, a number or a one-element tensor. None means 1. ``[heads]``: one coefficient for each head,
            so that :math:`L_\text{entropy} = -\sum_i c_i H_{t,i}`; the output ``entropy`` is still the mean of :math:`\sum_i H_{t,i}`.
        critic_coef: :math:`c_\text{critic}`, a number or a one-element tensor. None means 1.
        clip_value: largest change of the value in the clipped distance, a number or a one-element tensor. None or 0 means no clipping.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"`` (quadratic up to a distance of 1, linear beyond).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        mask: ``[*B]``, bool: steps that count. Means are over these steps; with ``reduction="none"`` the losses of all other steps are
            0. Other steps may hold NaN: NaN there reaches neither losses nor gradients.
        sample_log_prob: ``[*B]``, floating: log-probability of the action under the policy :math:`\mu` that chose it, for ``kl_approx``.
        diagnostics: whether to compute also ``explained_variance`` and, if ``sample_log_prob`` is given, ``kl_approx``.

            .. math::
                \text{explained\_variance} &= 1 - \operatorname{Var}(G - V) / \operatorname{Var}(G) \\
                \text{kl\_approx} &= \operatorname{mean}(\pi/\mu - 1 - \log(\pi/\mu)) \approx \mathrm{KL}(\mu \| \pi)

            ``explained_variance`` is NaN or minus infinity if all value targets are equal.

    Returns:
        :class:`A2CLosses`. The losses are scalars, or ``[*B]`` with ``reduction="none"``. If no step counts, the losses are 0. float16 and
        bfloat16 inputs give float32 losses.

    Raises:
        ValueError: an option is unknown, a tensor does not have the shape of ``log_prob``, a coefficient has several elements, or a
            required tensor is None.
        TypeError: ``mask`` is not bool, or an argument has a wrong type.

    Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016. The clipped value loss is TorchRL's. ``kl_approx`` is
    from Schulman, Approximating KL Divergence, 2020.
    """
    if not torch.jit.is_scripting():
        check_tensors(Terms._fields[:6], (log_prob, entropy, new_state_value, value_target, state_value, sample_log_prob), 1)
        check_tensors(("advantage",), (advantage,), 1)
        diagnostics = flag("diagnostics", diagnostics)
    if mask is not None:
        check_mask("mask", mask)
        check_shape("mask", mask, log_prob)
    if new_state_value is not None:
        check_shape("new_state_value", new_state_value, log_prob)
    sample_log_prob = sample_log_prob if diagnostics else None
    terms = Terms(log_prob, entropy, new_state_value, value_target, state_value, sample_log_prob, mask, mask)
    weights = Weights(
        _weight("entropy_coef", entropy_coef, log_prob, True),
        _weight("critic_coef", critic_coef, log_prob),
        _weight("clip_value", clip_value, log_prob),
        loss_critic_type,
        reduction,
    )
    objective = a2c_objective(zero_outside_mask("log_prob", log_prob, terms), zero_outside_mask("advantage", advantage, terms))
    nothing: List[str] = []
    return weighted_losses(objective, terms, weights, switched_off_outputs(nothing, diagnostics))


def _weight(name: str, value: Optional[Coefficient], log_prob: Tensor, of_heads: bool = False) -> Optional[Tensor]:
    """Returns a coefficient as a zero-dimensional tensor, a number in float64.

    None stays None. With ``of_heads``, a tensor with one coefficient for each head stays as it is.

    Raises ValueError for several elements, TypeError unless ``value`` is a number or a tensor of real numbers.
    """
    if value is None:
        return None
    if not torch.jit.is_scripting():
        value = number_or_tensor(name, value)
    if isinstance(value, Tensor):
        check_real(name, value)
        return value if of_heads and value.dim() == 1 and value.numel() > 1 else single(name, value)
    return torch.full([], float(value), dtype=torch.float64, device=log_prob.device)


def switched_off_outputs(dropped: List[str], diagnostics: bool) -> List[str]:
    """Returns the names in ``dropped``, and, if ``diagnostics`` is False, also the names of the diagnostics."""
    return dropped if diagnostics else dropped + ["explained_variance", "kl_approx"]


def a2c_objective(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Returns the policy loss of each step, ``-log_prob * advantage``, ``[*B]``."""
    return -(log_prob * advantage)


class Terms(NamedTuple):
    """The per-step tensors of :func:`a2c_loss`, each ``[*B]``, but ``entropy`` ``[*B, heads]`` with one coefficient for each head.

    ``new_state_value``, ``value_target``, ``state_value`` and ``value_mask`` have another shape if one value serves several agents.
    """

    log_prob: Tensor
    entropy: Optional[Tensor]
    new_state_value: Optional[Tensor]
    value_target: Optional[Tensor]
    state_value: Optional[Tensor]
    sample_log_prob: Optional[Tensor]
    mask: Optional[Tensor]
    value_mask: Optional[Tensor]


class Weights(NamedTuple):
    """The coefficients and options of :func:`a2c_loss`."""

    entropy_coef: Optional[Tensor]
    critic_coef: Optional[Tensor]
    clip_value: Optional[Tensor]
    loss_critic_type: str
    reduction: str


def weighted_losses(objective: Optional[Tensor], terms: Terms, weights: Weights, dropped: List[str]) -> A2CLosses:
    """Computes all outputs for which ``terms`` has the tensors, except those named in ``dropped``.

    ``objective`` is the policy loss of each step, ``[*B]``. None: ``loss_objective`` is None.
    """
    mask, reduction = terms.mask, weights.reduction
    loss_objective: Optional[Tensor] = None
    if objective is not None:
        loss_objective = _reduce(zero_outside_mask("objective", objective, terms), reduction, mask)

    mean_entropy: Optional[Tensor] = None
    loss_entropy: Optional[Tensor] = None
    entropy = terms.entropy
    if entropy is not None:
        entropy, weighted = _weighted_entropy(entropy, terms, weights.entropy_coef)
        if "entropy" not in dropped:
            mean_entropy = _mean(entropy.detach(), mask)
        if "loss_entropy" not in dropped:
            loss_entropy = _reduce(-weighted, reduction, mask)

    loss_critic: Optional[Tensor] = None
    value_clip_fraction: Optional[Tensor] = None
    explained_variance: Optional[Tensor] = None
    new_state_value, value_target = terms.new_state_value, terms.value_target
    if new_state_value is not None:
        if value_target is None:
            raise ValueError("value_target: expected a tensor, which the critic loss needs, got None")
        value_mask = terms.value_mask
        value_target = _zero_outside_value_mask("value_target", value_target, new_state_value, terms)
        new_state_value = _zero_outside_mask(new_state_value, value_mask)
        distance, value_clip_fraction = _critic_distance(new_state_value, value_target, terms, weights)
        if "loss_critic" not in dropped:
            loss_critic = _reduce(_scale(distance, weights.critic_coef), reduction, value_mask)
        if "value_clip_fraction" in dropped:
            value_clip_fraction = None
        if "explained_variance" not in dropped:
            explained_variance = _explained_variance(new_state_value.detach(), value_target.detach(), value_mask)

    kl_approx: Optional[Tensor] = None
    sample_log_prob = terms.sample_log_prob
    if sample_log_prob is not None:
        sample_log_prob = zero_outside_mask("sample_log_prob", sample_log_prob, terms)
        if "kl_approx" not in dropped:
            log_ratio = clamped_log_ratio(zero_outside_mask("log_prob", terms.log_prob, terms), sample_log_prob).detach()
            kl_approx = _mean(log_ratio.expm1() - log_ratio, mask)
    return A2CLosses(
        loss_objective, loss_critic, mean_entropy, loss_entropy, value_clip_fraction, explained_variance, kl_approx
    )


def _weighted_entropy(entropy: Tensor, terms: Terms, entropy_coef: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """Returns the entropy of the whole action, and its product with the coefficients, each ``[*B]`` and 0 outside the mask."""
    if entropy_coef is None or entropy_coef.dim() == 0:
        entropy = zero_outside_mask("entropy", entropy, terms)
        return entropy, _scale(entropy, entropy_coef)
    expected = list(terms.log_prob.shape) + [entropy_coef.numel()]
    if list(entropy.shape) != expected:
        raise ValueError(f"entropy: expected {expected}, with an entry for each entropy_coef, got {list(entropy.shape)}")
    mask = terms.mask
    entropy = _zero_outside_mask(entropy, None if mask is None else mask.unsqueeze(-1))
    return entropy.sum(-1), _scale(entropy, entropy_coef).sum(-1)


def _critic_distance(
    new_state_value: Tensor, value_target: Tensor, terms: Terms, weights: Weights
) -> Tuple[Tensor, Optional[Tensor]]:
    """Returns the distance of the critic loss at each value, and the fraction of clipped values (None without ``clip_value``).

    With ``clip_value``, ``distance = max(l(G, V), l(G, V_old + clip(V - V_old, -clip_value, clip_value)))``.
    """
    distance = critic_distance(value_target, new_state_value, weights.loss_critic_type)
    clip_value, state_value = weights.clip_value, terms.state_value
    if clip_value is None:
        return distance, None
    if state_value is None:
        raise ValueError("state_value: expected a tensor, which clip_value needs, got None")
    state_value = _zero_outside_value_mask("state_value", state_value, new_state_value, terms)
    change = new_state_value - state_value
    limit = clip_value.to(change.dtype)
    limit = limit.masked_fill(limit == 0, float("inf"))  # 0 means no clipping, also if the user assigns it after construction
    clipped_change = change.clamp(-limit, limit)
    value_clip_fraction = _mean((change != clipped_change).to(change.dtype), terms.value_mask)
    clipped = critic_distance(value_target, state_value + clipped_change, weights.loss_critic_type)
    return torch.maximum(distance, clipped), value_clip_fraction


def critic_distance(value_target: Tensor, state_value: Tensor, loss_critic_type: str) -> Tensor:
    """Returns the elementwise distance that ``loss_critic_type`` selects, with the shape and dtype of ``value_target``."""
    if loss_critic_type == "smooth_l1":
        return functional.smooth_l1_loss(state_value, value_target, reduction="none")
    if loss_critic_type == "l2":
        return functional.mse_loss(state_value, value_target, reduction="none")
    if loss_critic_type == "l1":
        return functional.l1_loss(state_value, value_target, reduction="none")
    raise ValueError(f"loss_critic_type: expected 'l1', 'l2' or 'smooth_l1', got '{loss_critic_type}'")


def _explained_variance(state_value: Tensor, value_target: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Computes ``1 - Var(value_target - state_value) / Var(value_target)`` over the steps in ``mask``.

    All sums are float64: in float32, the variance of equal or of large numbers can be a rounding error.
    """
    target = value_target.double()
    return (1.0 - _variance(target - state_value, mask) / _variance(target, mask)).to(value_target.dtype)


def _variance(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Returns the variance (not the unbiased one) of ``x`` over the steps in ``mask``. ``x`` must be 0 at all other steps."""
    return _mean(_zero_outside_mask(x - _mean(x, mask), mask).square(), mask)


def _scale(loss: Tensor, coefficient: Optional[Tensor]) -> Tensor:
    """Returns ``loss * coefficient``. None counts as 1."""
    return loss if coefficient is None else loss * coefficient.to(loss.dtype)


def _reduce(loss: Tensor, reduction: str, mask: Optional[Tensor]) -> Tensor:
    """Reduces the loss of each step, ``[*B]``, which must be 0 outside ``mask``, to a scalar, or returns it unchanged ("none")."""
    if reduction == "mean":
        return _mean(loss, mask)
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got '{reduction}'")


def _mean(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Returns the mean of ``x`` over the steps in ``mask``, or 0 if no step counts. ``x`` must be 0 at all other steps."""
    if mask is None:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if is_exporting():  # the exporter assumes that a dynamic size is at least 1, so max() would have no effect
                return x.sum() / torch.full([], x.numel(), dtype=x.dtype, device=x.device).clamp_min(1.0)
        return x.sum() / max(x.numel(), 1)
    return x.sum() / mask.sum().clamp_min(1)


def zero_outside_mask(name: str, tensor: Tensor, terms: Terms) -> Tensor:
    """Checks the shape of ``tensor`` and sets it to 0 at the steps that the mask excludes.

    This precedes all computation: if the result of a NaN were masked instead, its gradient would be ``0 * NaN = NaN``.
    """
    check_shape(name, tensor, terms.log_prob)
    return _zero_outside_mask(tensor, terms.mask)


def _zero_outside_value_mask(name: str, tensor: Tensor, new_state_value: Tensor, terms: Terms) -> Tensor:
    """Does the same for ``value_target`` and ``state_value``, which have the shape of ``new_state_value``."""
    check_shape(name, tensor, new_state_value, "log_prob" if new_state_value.shape == terms.log_prob.shape else "the values")
    return _zero_outside_mask(tensor, terms.value_mask)


def _zero_outside_mask(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Converts ``x`` to its working dtype and sets it to 0 outside ``mask``."""
    return widen(x) if mask is None else widen(x).masked_fill(~mask, 0.0)


def check_shape(name: str, tensor: Tensor, reference: Tensor, reference_name: str = "log_prob") -> None:
    """Raises ValueError if ``tensor`` does not have the shape of ``reference``."""
    if tensor.shape != reference.shape:
        raise ValueError(f"{name}: expected the shape of {reference_name}, {list(reference.shape)}, got {list(tensor.shape)}")
