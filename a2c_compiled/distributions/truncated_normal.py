"""Normal vectors cut off at the bounds of a box."""

from typing import Sequence, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._special_functions import gauss_legendre, half_normal_integral, half_normal_moment, half_normal_quantile
from a2c_compiled.distributions.base import box, check_real_action, draw
from a2c_compiled.distributions.normal import Normal


class TruncatedNormal(Normal):
    r"""A vector of independent normal variables, given that each is in its part ``[low, high]`` of a box.

    .. math::
        \log p = -\sum_i \Big( \tfrac12 (z_i^2 - c_i^2) + \log\sigma_i + \log W_i \Big), \qquad
        W = \int_{\text{low}}^{\text{high}} e^{(c^2 - z^2) / 2}\, dz

    for standardised :math:`z`, where :math:`c` is that of the mode, the location clamped to the bounds: what is subtracted is as small
    as the result, however far outside the box the location is. The entropy is the expectation of the same, and the integrals are
    computed to rounding by 28 points of Gauss and Legendre. An action outside the bounds has log-probability :math:`-\infty`.

    Noise is uniform, and a sample is the inverse of the cumulative distribution there; its gradient is that of the inverse.

    Equal to TorchRL's ``TruncatedNormal``, which however keeps 1e-6 from the bounds, and gives up in the tails of the normal variable.

    Args:
        dim: length of the action.
        low, high: bounds, numbers or one per dimension. They stay in float64 when the module changes dtype.
        scale_mapping, scale_lb, tanh_loc, upscale: as in :class:`Normal`.
    """

    noise_kind = "uniform"
    low: Tensor
    high: Tensor
    points: Tensor
    weights: Tensor

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
        buffers = dict(zip(("low", "high", "points", "weights"), (*box(low, high, self.dim), *gauss_legendre(28)), strict=True))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density of ``action`` of shape ``[*B, dim]``."""
        check_real_action(action, params, self.dim)
        # In the action's own dtype, to which a bound and a sample at it are rounded alike.
        outside = (action < self.low.to(action.dtype)) | (action > self.high.to(action.dtype))
        loc, scale = self.loc_and_scale(params)
        mode = self._clamp(loc)
        x = self._clamp(action.to(loc.dtype))
        tilt, width = self._sides(loc, scale, mode)
        integral = half_normal_integral(tilt, width, self.points, self.weights).sum(-1)
        exponent = 0.5 * ((x - mode) / scale) * ((x - loc + mode - loc) / scale)
        log_prob = (-exponent - scale.log() - integral.log()).sum(-1)
        return log_prob.masked_fill(outside.any(-1), -float("inf")).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r""":math:`\sum_i \log\sigma_i + \log W_i + \tfrac12 \mathbb{E}[z_i^2 - c_i^2]`."""
        loc, scale = self.loc_and_scale(params)
        tilt, width = self._sides(loc, scale, self._clamp(loc))
        integral = half_normal_integral(tilt, width, self.points, self.weights).sum(-1)
        moment = half_normal_moment(tilt, width, self.points, self.weights).sum(-1)
        return (scale.log() + integral.log() + moment / integral).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """The location, clamped to the bounds."""
        return self._clamp(self.loc_and_scale(params)[0]).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Uniform on [0, 1), ``[*B, dim]``."""
        return draw("uniform", self.loc_and_scale(params)[0])

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action at which the cumulative distribution is ``noise``."""
        loc, scale = self.loc_and_scale(params)
        fixed_loc, fixed_scale = loc.detach(), scale.detach()
        distance = self._quantile(fixed_loc, fixed_scale, noise)
        loc_slope, scale_slope = self._slopes(fixed_loc, fixed_scale, noise, distance)
        action = self._clamp(self._clamp(fixed_loc) + fixed_scale * distance)
        return (action + loc_slope * (loc - fixed_loc) + scale_slope * (scale - fixed_scale)).to(params.dtype)

    def _clamp(self, x: Tensor) -> Tensor:
        # Not torch.clamp, which ONNX takes for one with scalar bounds where there is one dimension.
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        return torch.where(x < low, low, torch.where(x > high, high, x))

    def _sides(self, loc: Tensor, scale: Tensor, mode: Tensor) -> Tuple[Tensor, Tensor]:
        """Below and above the mode, both ``[*B, dim, 2]``: how steeply the density falls, and how far it is to the bound, in scales."""
        low, high = self.low.to(loc.dtype), self.high.to(loc.dtype)
        tilt = self._tilt(loc, scale, mode).unsqueeze(-1).expand(list(loc.shape) + [2])
        return tilt, torch.stack([mode - low, high - mode], -1) / scale.unsqueeze(-1)

    def _tilt(self, loc: Tensor, scale: Tensor, mode: Tensor) -> Tensor:
        return ((mode - loc) / scale).abs().clamp_max(1e15)  # beyond, its square would overflow

    def _quantile(self, loc: Tensor, scale: Tensor, probability: Tensor) -> Tensor:
        """Where the cumulative distribution is ``probability``: the distance from the mode in scales, negative below it."""
        mode = self._clamp(loc)
        tilt, width = self._sides(loc, scale, mode)
        below, above = half_normal_integral(tilt, width, self.points, self.weights).unbind(-1)
        beyond_mode = probability * (below + above) - below
        distance = half_normal_quantile(self._tilt(loc, scale, mode), beyond_mode.abs(), self.points, self.weights)
        return torch.where(beyond_mode < 0, -distance, distance)

    def _slopes(self, loc: Tensor, scale: Tensor, probability: Tensor, distance: Tensor) -> Tuple[Tensor, Tensor]:
        """Of the quantile in the location and the scale: the cumulative distribution stays what it is."""
        mode = self._clamp(loc)
        c, below, above = (
            (mode - loc) / scale,
            (mode - self.low.to(loc.dtype)) / scale,
            (self.high.to(loc.dtype) - mode) / scale,
        )
        # The density at each bound relative to that at the quantile, times the probability on the quantile's other side.
        at_low = (0.5 * (distance + below) * (2.0 * c + distance - below)).clamp_max(80.0).exp() * (1.0 - probability)
        at_high = (0.5 * (distance - above) * (2.0 * c + distance + above)).clamp_max(80.0).exp() * probability
        # In a tail it is below its bound, and rounding must not make more of it.
        loc_slope = torch.minimum((1.0 - at_low - at_high).clamp(0.0, 1.0), (distance / c).abs().nan_to_num(1.0))
        return loc_slope, c * loc_slope + distance + at_low * below - at_high * above
