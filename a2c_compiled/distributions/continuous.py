"""Vectors of real numbers."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, draw


class Normal(Distribution):
    r"""A vector of ``dim`` independent normal variables; ``params`` are the locations and the raw scales side by side.

    :math:`\log p = -\sum_i \big( \tfrac12 ((a_i - \mu_i)/\sigma_i)^2 + \log\sigma_i + \tfrac12\log 2\pi \big)`

    The scale is made from its raw value by ``scale_mapping``, and is at least ``scale_lb``. Equal to
    ``Independent(torch.distributions.Normal(loc, scale), 1)``; the mapping to TorchRL's ``NormalParamExtractor``.

    Args:
        dim: length of the action.
        scale_mapping: ``"biased_softplus"`` (1 at 0), ``"biased_softplus_<bias>"`` (the bias at 0), ``"softplus"``, ``"exp"``, ``"relu"``,
            or ``"identity"`` for a network that has mapped it already.
        scale_lb: smallest scale.
        tanh_loc: make the location ``upscale * tanh(loc / upscale)``, which keeps it from running away.
        upscale: see ``tanh_loc``.
    """

    has_entropy = True
    noise_kind = "normal"

    def __init__(
        self,
        dim: int,
        scale_mapping: str = "biased_softplus",
        scale_lb: float = 1e-4,
        tanh_loc: bool = False,
        upscale: float = 5.0,
    ) -> None:
        super().__init__()
        self._shift = 0.0 if scale_mapping in ("softplus", "exp", "relu", "identity") else _softplus_shift(scale_mapping)
        if not scale_lb > 0:
            raise ValueError(f"scale_lb: expected a positive number, got {scale_lb}")
        if not upscale > 0:
            raise ValueError(f"upscale: expected a positive number, got {upscale}")
        self.dim = positive_int("dim", dim)
        self.num_params = 2 * self.dim
        self.scale_mapping = scale_mapping
        self.scale_lb = float(scale_lb)
        self.tanh_loc = bool(tanh_loc)
        self.upscale = float(upscale)

    def loc_and_scale(self, params: Tensor) -> Tuple[Tensor, Tensor]:
        """Both ``[*B, dim]``."""
        self.check_params(params)
        wide = widen(params)
        loc, raw = self.locate(wide.narrow(-1, 0, self.dim)), wide.narrow(-1, self.dim, self.dim)
        if self.scale_mapping == "softplus":
            scale = functional.softplus(raw)
        elif self.scale_mapping == "exp":
            scale = raw.clamp_max(80.0).exp()  # beyond, float32 would overflow
        elif self.scale_mapping == "relu" or self.scale_mapping == "identity":
            scale = raw  # the lower bound does what relu would
        else:
            scale = functional.softplus(raw + self._shift) + 0.01
        return loc, scale.clamp_min(self.scale_lb)

    def locate(self, loc: Tensor) -> Tensor:
        """The location from its parameter."""
        return (loc / self.upscale).tanh() * self.upscale if self.tanh_loc else loc

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density of ``action`` of shape ``[*B, dim]``."""
        check_real_action(action, params, self.dim)
        loc, scale = self.loc_and_scale(params)
        return _normal_log_prob((action.to(loc.dtype) - loc) / scale, scale).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r""":math:`\sum_i \big(\log\sigma_i + \tfrac12 + \tfrac12\log 2\pi\big)`."""
        _, scale = self.loc_and_scale(params)
        return (scale.log() + 0.5 * (1.0 + math.log(2.0 * math.pi))).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """The location."""
        return self.loc_and_scale(params)[0].to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Standard normal, ``[*B, dim]``."""
        return draw("normal", self.loc_and_scale(params)[0])

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """``loc + scale * noise``."""
        loc, scale = self.loc_and_scale(params)
        return (loc + scale * noise).to(params.dtype)


class TanhNormal(Normal):
    r"""A normal vector squashed into the box ``(low, high)``: :math:`a = \tfrac{h+l}{2} + \tfrac{h-l}{2}\tanh u`, :math:`u` normal.

    .. math::
        \log p(a) = \log p(u) - \sum_i \Big( \log\tfrac{h_i-l_i}{2} + 2 \big(\log 2 - u_i - \operatorname{softplus}(-2 u_i)\big) \Big)

    There is no closed-form entropy, and the mode is taken to be the squashed location. Actions at the bounds are scored a rounding
    error inside them. Equal to TorchRL's ``TanhNormal``, whose defaults these are.

    Args:
        dim: length of the action.
        low, high: bounds, numbers or one per dimension. They stay in float64 when the module changes dtype.
        scale_mapping, scale_lb, tanh_loc, upscale: as in :class:`Normal`.
    """

    has_entropy = False
    center: Tensor
    half_width: Tensor

    def __init__(
        self,
        dim: int,
        low: Union[float, Sequence[float]] = -1.0,
        high: Union[float, Sequence[float]] = 1.0,
        scale_mapping: str = "biased_softplus",
        scale_lb: float = 1e-4,
        tanh_loc: bool = False,
        upscale: float = 5.0,
    ) -> None:
        super().__init__(dim, scale_mapping, scale_lb, tanh_loc, upscale)
        low_, high_ = box(low, high, self.dim)
        self.register_buffer("center", (high_ + low_) / 2, persistent=False)
        self.register_buffer("half_width", (high_ - low_) / 2, persistent=False)

    def locate(self, loc: Tensor) -> Tensor:
        """The location from its parameter; with ``tanh_loc`` around the middle of the box, as TorchRL has it."""
        return (loc / self.upscale).tanh() * self.upscale + self.center.to(loc.dtype) if self.tanh_loc else loc

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density of ``action`` of shape ``[*B, dim]``, inside the bounds or on them."""
        check_real_action(action, params, self.dim)
        loc, scale = self.loc_and_scale(params)
        u = inside((action.to(loc.dtype) - self.center.to(loc.dtype)) / self.half_width.to(loc.dtype)).atanh()
        return self._log_prob_before_tanh((u - loc) / scale, scale, u).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """Not known in closed form."""
        raise NotImplementedError("entropy: TanhNormal has no closed form; use entropy_estimate")

    def mode(self, params: Tensor) -> Tensor:
        """The squashed location."""
        return self._squash(self.loc_and_scale(params)[0]).to(params.dtype)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The squashed ``loc + scale * noise``."""
        loc, scale = self.loc_and_scale(params)
        return self._squash(loc + scale * noise).to(params.dtype)

    def sample_and_log_prob(self, params: Tensor, noise: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """As in the base class, but scored before the squashing: where tanh saturates, its inverse would score another sample."""
        loc, scale = self.loc_and_scale(params)
        given = self.noise(params) if noise is None else noise
        u = loc + scale * given
        return self._squash(u).to(params.dtype), self._log_prob_before_tanh(given, scale, u).to(params.dtype)

    def _squash(self, u: Tensor) -> Tensor:
        return squashed(u, self.center, self.half_width)

    def _log_prob_before_tanh(self, standardized: Tensor, scale: Tensor, u: Tensor) -> Tensor:
        log_slope = 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u)) + self.half_width.to(u.dtype).log()
        return _normal_log_prob(standardized, scale) - log_slope.sum(-1)


def _softplus_shift(scale_mapping: str) -> float:
    """What makes softplus give the bias, less TorchRL's floor of 0.01, where the raw scale is 0."""
    name, _, bias = scale_mapping.partition("softplus_")
    if scale_mapping == "biased_softplus":
        name, bias = "biased_", "1"
    try:
        softplus = float(bias) - 0.01 if name == "biased_" else math.nan
    except ValueError:
        softplus = math.nan
    if not 0.0 < softplus < math.inf:
        choices = "'biased_softplus', 'biased_softplus_<bias above 0.01>', 'softplus', 'exp', 'relu' or 'identity'"
        raise ValueError(f"scale_mapping: expected {choices}, got {scale_mapping!r}")
    return softplus + math.log(-math.expm1(-softplus))


def box(low: Union[float, Sequence[float]], high: Union[float, Sequence[float]], dim: int) -> Tuple[Tensor, Tensor]:
    """Both bounds as float64 of shape ``[dim]``; ValueError unless they are the bounds of a box."""
    lows, highs = _bound("low", low, dim), _bound("high", high, dim)
    if not bool((lows < highs).all()):
        raise ValueError(f"low: expected less than high, {high}, got {low}")
    return lows, highs


def _bound(name: str, value: Union[float, Sequence[float]], dim: int) -> Tensor:
    bound = torch.as_tensor(value, dtype=torch.float64)
    if bound.dim() > 1 or bound.numel() not in (1, dim):
        raise ValueError(f"{name}: expected a number or {dim} of them, got shape {list(bound.shape)}")
    if not bool(bound.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    return bound.expand(dim)


def squashed(u: Tensor, center: Tensor, half_width: Tensor) -> Tensor:
    """``u`` in the box, in the dtype of ``u``."""
    return center.to(u.dtype) + half_width.to(u.dtype) * inside(u.tanh())


def check_real_action(action: Tensor, params: Tensor, dim: int) -> None:
    """Raise ValueError or TypeError unless ``action`` is floating, ``[*B, dim]``."""
    check_action_shape(action, params, [dim])
    if not action.is_floating_point():
        raise TypeError(f"action: expected a floating dtype, got {action.dtype}")


def _normal_log_prob(standardized: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * standardized.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def inside(fraction: Tensor) -> Tensor:
    """Away from the bounds by as much as the dtype resolves in decimal digits, which is TorchRL's margin."""
    limit = 1.0 - (1e-15 if fraction.dtype == torch.float64 else 1e-6)
    return fraction.clamp(-limit, limit)
