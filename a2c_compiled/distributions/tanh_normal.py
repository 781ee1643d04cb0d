"""The normal distribution mapped into a box by tanh."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._kinds import check_tensor
from a2c_compiled.distributions.base import box, check_real_action
from a2c_compiled.distributions.normal import Normal, normal_log_prob


class TanhNormal(Normal):
    r"""A normal vector :math:`u`, mapped into the box ``(low, high)``: :math:`a = \tfrac{h+l}{2} + \tfrac{h-l}{2}\tanh u`.

    .. math::
        \log p(a) = \log p(u) - \sum_i \Big( \log\tfrac{h_i-l_i}{2} + 2 \big(\log 2 - u_i - \operatorname{softplus}(-2 u_i)\big) \Big)

    * ``params``: ``[*B, 2 * dim]``, floating dtype; ``dim`` locations of :math:`u`, then ``dim`` raw scales, as in :class:`Normal`.
    * action: ``[*B, dim]``, floating dtype, in ``[low, high]``. The class limits the result of tanh, and the argument of atanh, to
      ``[-1 + 1e-6, 1 - 1e-6]`` (1e-15 for float64), so that an action at a bound has a finite log-density.
    * noise: ``[*B, dim]``, standard normal.

    The entropy has no closed form. :meth:`mode` returns the mapped location, which is not the exact mode.

    Args:
        dim: length of the action.
        low, high: bounds: a number, or a sequence of ``dim`` numbers. The bounds stay in float64 when the module changes dtype.
        scale_mapping, scale_lb, upscale: as in :class:`Normal`.
        tanh_loc: True: the location is ``upscale * tanh(raw / upscale) + (low + high) / 2``. False: the location is the raw location.

    Raises:
        ValueError: as in :class:`Normal`, or the bounds are not finite, not ``low < high``, or not of length ``dim``.
        TypeError: ``dim`` is not an integer.

    Source: TorchRL's TanhNormal, with the same defaults.
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
        lower, upper = box(low, high, self.dim)
        self.register_buffer("center", (upper + lower) / 2, persistent=False)
        self.register_buffer("half_width", (upper - lower) / 2, persistent=False)

    def locate(self, loc: Tensor) -> Tensor:
        """Maps the raw location to the location, as ``tanh_loc`` says. ``loc`` and the result: ``[*B, dim]``, same dtype.

        Raises TypeError if ``loc`` is not a tensor.
        """
        check_tensor("loc", loc)
        return (loc / self.upscale).tanh() * self.upscale + self.center.to(loc.dtype) if self.tanh_loc else loc

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-density of ``action``.

        ``action``: ``[*B, dim]``, floating dtype, in ``[low, high]``. Result: ``[*B]``, dtype of ``params``.
        """
        check_real_action(action, params, self.dim)
        loc, scale = self.loc_and_scale(params)
        u = _limited((action.to(loc.dtype) - self.center.to(loc.dtype)) / self.half_width.to(loc.dtype)).atanh()
        return self._log_prob_before_tanh((u - loc) / scale, scale, u).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """Raises NotImplementedError: there is no closed form. Use :meth:`entropy_estimate`."""
        raise NotImplementedError("entropy: TanhNormal has no closed form; use entropy_estimate")

    def mode(self, params: Tensor) -> Tensor:
        """Maps the location into the box: ``[*B, dim]``, dtype of ``params``."""
        return self._squash(self.loc_and_scale(params)[0]).to(params.dtype)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Maps ``loc + scale * noise`` into the box: ``[*B, dim]``, dtype of ``params``."""
        check_tensor("noise", noise)
        loc, scale = self.loc_and_scale(params)
        return self._squash(loc + scale * noise).to(params.dtype)

    def sample_and_log_prob(self, params: Tensor, noise: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Samples an action and computes its log-probability from the value before tanh: ``[*B, dim]`` and ``[*B]``.

        If tanh saturates, atanh of the action does not return that value, and :meth:`log_prob` returns another result.
        """
        loc, scale = self.loc_and_scale(params)
        standardized = self.noise(params) if noise is None else noise
        check_tensor("noise", standardized)
        u = loc + scale * standardized
        return self._squash(u).to(params.dtype), self._log_prob_before_tanh(standardized, scale, u).to(params.dtype)

    def _squash(self, u: Tensor) -> Tensor:
        """Maps ``u`` into the box, see :func:`squashed`."""
        return squashed(u, self.center, self.half_width)

    def _log_prob_before_tanh(self, standardized: Tensor, scale: Tensor, u: Tensor) -> Tensor:
        """Computes the log-density of the action from its value ``u`` before tanh and ``standardized = (u - loc) / scale``: ``[*B]``."""
        log_slope = 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u)) + self.half_width.to(u.dtype).log()
        return normal_log_prob(standardized, scale) - log_slope.sum(-1)


def squashed(u: Tensor, center: Tensor, half_width: Tensor) -> Tensor:
    """Maps ``u`` into the box: ``center + half_width * tanh(u)``, in the dtype of ``u``."""
    return center.to(u.dtype) + half_width.to(u.dtype) * _limited(u.tanh())


def _limited(fraction: Tensor) -> Tensor:
    """Limits ``fraction`` to ``[-1 + margin, 1 - margin]`` with TorchRL's margin: 1e-15 for float64, otherwise 1e-6."""
    limit = 1.0 - (1e-15 if fraction.dtype == torch.float64 else 1e-6)
    return fraction.clamp(-limit, limit)
