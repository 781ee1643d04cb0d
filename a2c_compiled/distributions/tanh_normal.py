"""Vectors of numbers in a box, each a normal variable before tanh."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled.distributions.base import box, check_real_action
from a2c_compiled.distributions.normal import Normal, normal_log_prob


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
        return normal_log_prob(standardized, scale) - log_slope.sum(-1)


def squashed(u: Tensor, center: Tensor, half_width: Tensor) -> Tensor:
    """``u`` in the box, in the dtype of ``u``."""
    return center.to(u.dtype) + half_width.to(u.dtype) * inside(u.tanh())


def inside(fraction: Tensor) -> Tensor:
    """Away from the bounds by as much as the dtype resolves in decimal digits, which is TorchRL's margin."""
    limit = 1.0 - (1e-15 if fraction.dtype == torch.float64 else 1e-6)
    return fraction.clamp(-limit, limit)
