"""The A2C objective as a function of tensors."""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._exporting import is_exporting
from a2c_compiled._precision import clamped_log_ratio, widen


class A2CLosses(NamedTuple):
    """What :class:`~a2c_compiled.A2CLoss` returns; None for what is switched off.

    Only the ``loss_*`` entries are to be minimised, and only they follow ``reduction``; the others are detached scalars.
    """

    loss_objective: Optional[Tensor] = None
    loss_critic: Optional[Tensor] = None
    entropy: Optional[Tensor] = None
    loss_entropy: Optional[Tensor] = None
    value_clip_fraction: Optional[Tensor] = None
    explained_variance: Optional[Tensor] = None
    kl_approx: Optional[Tensor] = None


LOSSES = tuple(name for name in A2CLosses._fields if name.startswith("loss_"))
"""The outputs to be minimised."""


def a2c_loss(
    log_prob: Tensor,
    advantage: Tensor,
    entropy: Optional[Tensor] = None,
    new_state_value: Optional[Tensor] = None,
    value_target: Optional[Tensor] = None,
    state_value: Optional[Tensor] = None,
    entropy_coef: Optional[Tensor] = None,
    critic_coef: Optional[Tensor] = None,
    clip_value: Optional[Tensor] = None,
    loss_critic_type: str = "smooth_l1",
    reduction: str = "mean",
    mask: Optional[Tensor] = None,
    sample_log_prob: Optional[Tensor] = None,
    diagnostics: bool = False,
) -> A2CLosses:
    r"""The advantage actor-critic objective.

    .. math::
        L_\text{objective} &= -\log\pi(a_t|s_t)\, A_t \\
        L_\text{entropy} &= -c_\text{entropy}\, H_t \\
        L_\text{critic} &= c_\text{critic}\, \ell(G_t, V(s_t))

    With ``clip_value`` :math:`c`, the critic's distance is the larger of :math:`\ell(G, V)` and
    :math:`\ell(G, V_\text{old} + \operatorname{clip}(V - V_\text{old}, -c, c))`.

    Args:
        log_prob: log-probability of the action taken, any shape ``[*B]``; everything below that has one entry per step has the same.
        advantage: :math:`A`, a constant of the objective unless it carries a gradient.
        entropy: :math:`H` of the policy; None drops the two entropy outputs.
        new_state_value: :math:`V(s)` of the critic that learns; None drops the critic loss.
        value_target: :math:`G`, the return.
        state_value: :math:`V_\text{old}`, of the critic when the data was made; needed with ``clip_value``.
        entropy_coef, critic_coef: 0-d tensors; None is 1.
        clip_value: 0-d tensor; None or 0 clips nothing.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"`` (quadratic up to a distance of 1).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        mask: bool, true where a step counts. The mean is over those steps; unreduced losses are 0 elsewhere. What is masked out is
            never read: NaN there does not leak.
        sample_log_prob: log-probability of the action when it was taken, for ``kl_approx``.
        diagnostics: also compute the share of the returns' variance that the values explain, :math:`1 - \operatorname{Var}(G - V) /
            \operatorname{Var}(G)` (NaN or minus infinity where the returns are all equal), and where ``sample_log_prob`` is given an
            estimate of :math:`\mathrm{KL}(\mu \| \pi)` of the policy that acted and the present one, :math:`\pi/\mu - 1 - \log(\pi/\mu)`.

    Returns:
        :class:`A2CLosses`; with ``reduction="none"`` the losses are ``[*B]``, otherwise scalars.

    Raises:
        ValueError: an option is unknown, a shape differs, or a tensor that an option needs is missing.

    Half-precision inputs give float32 losses. No steps at all give a loss of 0.

    Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016; the clipped value loss is TorchRL's; the estimate
    of the divergence is Schulman's, Approximating KL Divergence, 2020.
    """
    if mask is not None:
        check_mask(mask)
        check_shape("mask", mask, log_prob)
    sample_log_prob = sample_log_prob if diagnostics else None
    terms = Terms(log_prob, entropy, new_state_value, value_target, state_value, sample_log_prob, mask)
    weights = Weights(entropy_coef, critic_coef, clip_value, loss_critic_type, reduction)
    objective = a2c_objective(counted("log_prob", log_prob, terms), counted("advantage", advantage, terms))
    nothing: List[str] = []
    return weighted_losses(objective, terms, weights, left_out(nothing, diagnostics))


def left_out(dropped: List[str], diagnostics: bool) -> List[str]:
    """``dropped``, with the outputs that ``diagnostics`` alone gives."""
    return dropped if diagnostics else dropped + ["explained_variance", "kl_approx"]


def a2c_objective(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """What the actor minimises at each step."""
    return -(log_prob * advantage)


class Terms(NamedTuple):
    """What the losses are made of, each ``[*B]`` as :func:`a2c_loss` describes it."""

    log_prob: Tensor
    entropy: Optional[Tensor]
    new_state_value: Optional[Tensor]
    value_target: Optional[Tensor]
    state_value: Optional[Tensor]
    sample_log_prob: Optional[Tensor]
    mask: Optional[Tensor]


class Weights(NamedTuple):
    """How the losses are made of them, as :func:`a2c_loss` describes it."""

    entropy_coef: Optional[Tensor]
    critic_coef: Optional[Tensor]
    clip_value: Optional[Tensor]
    loss_critic_type: str
    reduction: str


def weighted_losses(objective: Optional[Tensor], terms: Terms, weights: Weights, dropped: List[str]) -> A2CLosses:
    """Every output that ``terms`` suffice for, but those that are ``dropped``: they are not computed.

    ``objective`` is what the actor minimises at each step, ``[*B]``.
    """
    mask, reduction = terms.mask, weights.reduction
    loss_objective: Optional[Tensor] = None
    if objective is not None:
        loss_objective = _reduce(counted("objective", objective, terms), reduction, mask)

    mean_entropy: Optional[Tensor] = None
    loss_entropy: Optional[Tensor] = None
    entropy = terms.entropy
    if entropy is not None:
        entropy = counted("entropy", entropy, terms)
        if "entropy" not in dropped:
            mean_entropy = _mean(entropy.detach(), mask)
        if "loss_entropy" not in dropped:
            loss_entropy = _reduce(_scale(-entropy, weights.entropy_coef), reduction, mask)

    loss_critic: Optional[Tensor] = None
    value_clip_fraction: Optional[Tensor] = None
    explained_variance: Optional[Tensor] = None
    new_state_value, value_target = terms.new_state_value, terms.value_target
    if new_state_value is not None:
        if value_target is None:
            raise ValueError("value_target: expected the return that the critic learns, got None")
        value_target = counted("value_target", value_target, terms)
        new_state_value = counted("new_state_value", new_state_value, terms)
        distance, value_clip_fraction = _critic_distance(new_state_value, value_target, terms, weights)
        if "loss_critic" not in dropped:
            loss_critic = _reduce(_scale(distance, weights.critic_coef), reduction, mask)
        if "value_clip_fraction" in dropped:
            value_clip_fraction = None
        if "explained_variance" not in dropped:
            explained_variance = _explained_variance(new_state_value.detach(), value_target.detach(), mask)

    kl_approx: Optional[Tensor] = None
    sample_log_prob = terms.sample_log_prob
    if sample_log_prob is not None:
        sample_log_prob = counted("sample_log_prob", sample_log_prob, terms)
        if "kl_approx" not in dropped:
            log_ratio = clamped_log_ratio(counted("log_prob", terms.log_prob, terms), sample_log_prob).detach()
            kl_approx = _mean(log_ratio.expm1() - log_ratio, mask)
    return A2CLosses(
        loss_objective, loss_critic, mean_entropy, loss_entropy, value_clip_fraction, explained_variance, kl_approx
    )


def _critic_distance(
    new_state_value: Tensor, value_target: Tensor, terms: Terms, weights: Weights
) -> Tuple[Tensor, Optional[Tensor]]:
    """The distance at each step, clipped where ``clip_value`` is given, and the share of the steps where it is."""
    distance = critic_distance(value_target, new_state_value, weights.loss_critic_type)
    clip_value, state_value = weights.clip_value, terms.state_value
    if clip_value is None:
        return distance, None
    if state_value is None:
        raise ValueError("state_value: expected the value before the update, which clip_value needs, got None")
    state_value = counted("state_value", state_value, terms)
    step = new_state_value - state_value
    limit = clip_value.to(step.dtype)
    limit = limit.masked_fill(limit == 0, float("inf"))  # 0 switches clipping off, also where it is assigned later
    clipped_step = step.clamp(-limit, limit)
    value_clip_fraction = _mean((step != clipped_step).to(step.dtype), terms.mask)
    clipped = critic_distance(value_target, state_value + clipped_step, weights.loss_critic_type)
    return torch.maximum(distance, clipped), value_clip_fraction


def critic_distance(value_target: Tensor, state_value: Tensor, loss_critic_type: str) -> Tensor:
    """The elementwise distance that ``loss_critic_type`` names."""
    if loss_critic_type == "smooth_l1":
        return functional.smooth_l1_loss(state_value, value_target, reduction="none")
    if loss_critic_type == "l2":
        return functional.mse_loss(state_value, value_target, reduction="none")
    if loss_critic_type == "l1":
        return functional.l1_loss(state_value, value_target, reduction="none")
    raise ValueError(f"loss_critic_type: expected 'l1', 'l2' or 'smooth_l1', got '{loss_critic_type}'")


def _explained_variance(state_value: Tensor, value_target: Tensor, mask: Optional[Tensor]) -> Tensor:
    return 1.0 - _variance(value_target - state_value, mask) / _variance(value_target, mask)


def _variance(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    return _mean(_counted(x - _mean(x, mask), mask).square(), mask)


def _scale(loss: Tensor, coefficient: Optional[Tensor]) -> Tensor:
    return loss if coefficient is None else loss * coefficient.to(loss.dtype)


def _reduce(loss: Tensor, reduction: str, mask: Optional[Tensor]) -> Tensor:
    if reduction == "mean":
        return _mean(loss, mask)
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got '{reduction}'")


def _mean(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Over the steps that count; 0 where there are none. ``x`` is 0 elsewhere."""
    if mask is None:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if is_exporting():  # which takes a size for more than 0
                return x.sum() / torch.full([], x.numel(), dtype=x.dtype, device=x.device).clamp_min(1.0)
        return x.sum() / max(x.numel(), 1)
    return x.sum() / mask.sum().clamp_min(1)


def counted(name: str, tensor: Tensor, terms: Terms) -> Tensor:
    """``tensor``, checked, with 0 where a step does not count, before anything is computed: a NaN there would return as 0 * NaN in a
    gradient."""
    check_shape(name, tensor, terms.log_prob)
    return _counted(tensor, terms.mask)


def _counted(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    return widen(x) if mask is None else widen(x).masked_fill(~mask, 0.0)


def check_mask(mask: Tensor) -> None:
    """Raise TypeError unless ``mask`` is bool."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected dtype torch.bool, got {mask.dtype}")


def check_shape(name: str, tensor: Tensor, log_prob: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has the shape of ``log_prob``."""
    if tensor.shape != log_prob.shape:
        raise ValueError(f"{name}: expected the shape of log_prob, {list(log_prob.shape)}, got {list(tensor.shape)}")
