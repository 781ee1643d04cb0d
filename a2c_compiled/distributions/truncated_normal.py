"""The normal distribution truncated to a box."""

from typing import Sequence, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._kinds import check_tensor
from a2c_compiled._special_functions import gauss_legendre, half_normal_integral, half_normal_moment, half_normal_quantile
from a2c_compiled.distributions.base import box, check_real_action, draw
from a2c_compiled.distributions.normal import Normal


class TruncatedNormal(Normal):
    r"""A vector of independent normal variables, conditioned on being inside the box ``[low, high]``.

    .. math::
        \log p(a) = -\sum_i \Big( \tfrac12 (z_i^2 - c_i^2) + \log\sigma_i + \log W_i \Big), \qquad
        W_i = \int_{(l_i - \mu_i) / \sigma_i}^{(h_i - \mu_i) / \sigma_i} e^{(c_i^2 - z^2) / 2}\, dz

    Here :math:`z_i = (a_i - \mu_i) / \sigma_i`, and :math:`c_i` is :math:`z_i` for the mode, which is the location limited to the box. The
    exponents contain differences from :math:`c_i^2`, so they stay small and accurate however far outside the box the location is.
    Gauss-Legendre quadrature with 28 points computes the integrals to rounding error. The entropy is the expectation of
    :math:`-\log p`.

    * ``params``: ``[*B, 2 * dim]``, floating dtype; ``dim`` locations :math:`\mu`, then ``dim`` raw scales, as in :class:`Normal`.
    * action: ``[*B, dim]``, floating dtype. Outside the bounds the log-probability is :math:`-\infty`.
    * noise: ``[*B, dim]``, uniform. A sample is the inverse of the cumulative distribution function at the noise, with the gradient of
      that inverse.

    The tails differ from TorchRL's ``TruncatedNormal``, because TorchRL limits cumulative probabilities to ``[1e-6, 1 - 1e-6]``.

    Args:
        dim: length of the action.
        low, high: bounds: a number, or a sequence of ``dim`` numbers. The bounds stay in float64 when the module changes dtype.
        scale_mapping, scale_lb, tanh_loc, upscale: as in :class:`Normal`.

    Raises:
        ValueError: as in :class:`Normal`, or the bounds are not finite, not ``low < high``, or not of length ``dim``.
        TypeError: ``dim`` is not an integer.

    Source: TorchRL's TruncatedNormal.
    """

    noise_kind = "uniform"
    low: Tensor
    high: Tensor
    points: Tensor  # the quadrature's points; `weights` are its weights
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
        lower, upper = box(low, high, self.dim)
        points, weights = gauss_legendre(28)
        for name, buffer in (("low", lower), ("high", upper), ("points", points), ("weights", weights)):
            self.register_buffer(name, buffer, persistent=False)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-density of ``action``.

        ``action``: ``[*B, dim]``, floating dtype. Result: ``[*B]``, dtype of ``params``.
        """
        check_real_action(action, params, self.dim)
        # Compare in the action's dtype: a bound and a sample at that bound are then rounded in the same way.
        outside = (action < self.low.to(action.dtype)) | (action > self.high.to(action.dtype))
        loc, scale = self.loc_and_scale(params)
        mode = self._clamp(loc)
        x = self._clamp(action.to(loc.dtype))
        tilt, width = self._tilt_and_width(loc, scale, mode)
        integral = half_normal_integral(tilt, width, self.points, self.weights).sum(-1)
        # (z ** 2 - c ** 2) / 2 as a product of a difference and a sum
        exponent = 0.5 * ((x - mode) / scale) * ((x - loc + mode - loc) / scale)
        log_prob = (-exponent - scale.log() - integral.log()).sum(-1)
        return log_prob.masked_fill(outside.any(-1), -float("inf")).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r"""Computes :math:`\sum_i \log\sigma_i + \log W_i + \tfrac12 \mathbb{E}[z_i^2 - c_i^2]`: ``[*B]``, dtype of ``params``."""
        loc, scale = self.loc_and_scale(params)
        tilt, width = self._tilt_and_width(loc, scale, self._clamp(loc))
        integral = half_normal_integral(tilt, width, self.points, self.weights).sum(-1)
        moment = half_normal_moment(tilt, width, self.points, self.weights).sum(-1)
        return (scale.log() + integral.log() + moment / integral).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """Returns the location, limited to the box: ``[*B, dim]``, dtype of ``params``."""
        return self._clamp(self.loc_and_scale(params)[0]).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Draws uniform noise from 0 (included) to 1 (excluded): ``[*B, dim]``, float64 for float64 ``params``, otherwise float32."""
        return draw("uniform", self.loc_and_scale(params)[0])

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns the action at which the cumulative distribution function equals ``noise``: ``[*B, dim]``, dtype of ``params``."""
        check_tensor("noise", noise)
        loc, scale = self.loc_and_scale(params)
        fixed_loc, fixed_scale = loc.detach(), scale.detach()
        distance = self._quantile(fixed_loc, fixed_scale, noise)
        loc_slope, scale_slope = self._slopes(fixed_loc, fixed_scale, noise, distance)
        action = self._clamp(self._clamp(fixed_loc) + fixed_scale * distance)
        # The added terms are 0. They give the result its gradient in loc and scale.
        return (action + loc_slope * (loc - fixed_loc) + scale_slope * (scale - fixed_scale)).to(params.dtype)

    def _clamp(self, x: Tensor) -> Tensor:
        """Limits ``x``, ``[*B, dim]``, to the box."""
        # Not torch.clamp: with one dimension, the ONNX export reads tensor bounds of one element as scalars.
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        return torch.where(x < low, low, torch.where(x > high, high, x))

    def _tilt_and_width(self, loc: Tensor, scale: Tensor, mode: Tensor) -> Tuple[Tensor, Tensor]:
        """Computes the tilt and the width of the half-normal integrals below and above the mode, each ``[*B, dim, 2]``.

        The tilt is the distance from the location to the mode, divided by the scale. The width is the distance from the mode to the lower
        or the upper bound, divided by the scale.
        """
        low, high = self.low.to(loc.dtype), self.high.to(loc.dtype)
        tilt = self._tilt(loc, scale, mode).unsqueeze(-1).expand(list(loc.shape) + [2])
        return tilt, torch.stack([mode - low, high - mode], -1) / scale.unsqueeze(-1)

    def _tilt(self, loc: Tensor, scale: Tensor, mode: Tensor) -> Tensor:
        """Computes the distance from the location to the mode, divided by the scale: ``[*B, dim]``."""
        return ((mode - loc) / scale).abs().clamp_max(1e15)  # the square of a much larger number overflows in float32

    def _quantile(self, loc: Tensor, scale: Tensor, probability: Tensor) -> Tensor:
        """Inverts the cumulative distribution function at ``probability``.

        Returns the distance from the mode divided by the scale, negative below the mode.
        """
        mode = self._clamp(loc)
        tilt, width = self._tilt_and_width(loc, scale, mode)
        below, above = half_normal_integral(tilt, width, self.points, self.weights).unbind(-1)
        from_mode = probability * (below + above) - below  # the signed integral from the mode to the quantile
        distance = half_normal_quantile(self._tilt(loc, scale, mode), from_mode.abs(), self.points, self.weights)
        return torch.where(from_mode < 0, -distance, distance)

    def _slopes(self, loc: Tensor, scale: Tensor, probability: Tensor, distance: Tensor) -> Tuple[Tensor, Tensor]:
        """Computes the derivatives of the quantile with respect to the location and to the scale, at a constant cumulative probability.

        The arguments and both results are ``[*B, dim]``, of one dtype, float32 or float64.
        """
        mode = self._clamp(loc)
        c = (mode - loc) / scale
        below, above = (mode - self.low.to(loc.dtype)) / scale, (self.high.to(loc.dtype) - mode) / scale
        # at_low: density at the lower bound / density at the quantile, times the probability above the quantile. at_high: the same for the
        # upper bound, times the probability below it. The exponents are at most 80: the exponential of 89 overflows in float32.
        at_low = (0.5 * (distance + below) * (2.0 * c + distance - below)).clamp_max(80.0).exp() * (1.0 - probability)
        at_high = (0.5 * (distance - above) * (2.0 * c + distance + above)).clamp_max(80.0).exp() * probability
        # In a tail, the derivative with respect to the location is at most distance / c. Rounding errors could exceed this limit. If the
        # location is inside the box, c is 0 and there is no such limit: 0 / 0 counts as 1.
        loc_slope = torch.minimum((1.0 - at_low - at_high).clamp(0.0, 1.0), (distance / c).abs().nan_to_num(1.0))
        return loc_slope, c * loc_slope + distance + at_low * below - at_high * above
