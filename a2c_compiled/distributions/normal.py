"""The normal distribution of real vectors, and a layer that adds learned scales to an actor network."""

import math
from typing import Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from a2c_compiled._hyperparameters import ANY, POSITIVE, positive_int
from a2c_compiled._kinds import check_tensor, described, flag
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_real_action, draw


class Normal(Distribution):
    r"""A vector of ``dim`` independent normal variables.

    .. math:: \log p(a) = -\sum_i \big( \tfrac12 ((a_i - \mu_i)/\sigma_i)^2 + \log\sigma_i + \tfrac12\log 2\pi \big)

    * ``params``: ``[*B, 2 * dim]``, floating dtype; the first ``dim`` entries are the locations (raw locations with ``tanh_loc``), the
      others the raw scales. ``scale_mapping`` maps a raw scale to :math:`\sigma`.
    * action: ``[*B, dim]``, floating dtype.
    * noise: ``[*B, dim]``, standard normal. A sample is ``loc + scale * noise``.

    Args:
        dim: length of the action.
        scale_mapping: one of

            * ``"biased_softplus_<bias>"``: ``softplus(raw + c) + 0.01``, with ``c`` such that the result is ``<bias>`` for ``raw = 0``;
              the bias must be above 0.01;
            * ``"biased_softplus"``: ``"biased_softplus_1"``;
            * ``"softplus"`` or ``"relu"``: ``softplus(raw)`` or ``relu(raw)``;
            * ``"exp"``: ``exp(min(raw, 80))``, for every dtype;
            * ``"identity"``: the raw scale.
        scale_lb: lower bound of the scale, positive. The scale is ``max(scale_lb, mapped raw scale)``.
        tanh_loc: True: the location is ``upscale * tanh(raw / upscale)``, which is between ``-upscale`` and ``upscale``. False: the
            location is the raw location.
        upscale: see ``tanh_loc``; positive.

    Raises:
        ValueError: ``dim`` is less than 1, ``scale_mapping`` is unknown, or ``scale_lb`` or ``upscale`` is not positive.
        TypeError: an argument has a wrong type.

    Source: ``Independent(torch.distributions.Normal(loc, scale), 1)``; the scale: ``tensordict.nn.NormalParamExtractor``.
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
        self.dim = positive_int("dim", dim)
        self.num_params = 2 * self.dim
        self.scale_mapping = scale_mapping
        self.scale_lb = POSITIVE.number("scale_lb", scale_lb)
        self.tanh_loc = flag("tanh_loc", tanh_loc)
        self.upscale = POSITIVE.number("upscale", upscale)

    def loc_and_scale(self, params: Tensor) -> Tuple[Tensor, Tensor]:
        r"""Computes the location :math:`\mu` and the scale :math:`\sigma`.

        Each result: ``[*B, dim]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        wide = widen(params)
        loc, raw = self.locate(wide.narrow(-1, 0, self.dim)), wide.narrow(-1, self.dim, self.dim)
        if self.scale_mapping == "softplus":
            scale = functional.softplus(raw)
        elif self.scale_mapping == "exp":
            scale = raw.clamp_max(80.0).exp()  # exp of more than 88 overflows in float32
        elif self.scale_mapping == "relu" or self.scale_mapping == "identity":
            scale = raw  # clamp_min below makes relu unnecessary, because scale_lb is positive
        else:
            scale = functional.softplus(raw + self._shift) + 0.01  # 0.01: see _softplus_shift
        return loc, scale.clamp_min(self.scale_lb)

    def locate(self, loc: Tensor) -> Tensor:
        """Maps the raw location to the location, as ``tanh_loc`` says. ``loc`` and the result: ``[*B, dim]``, same dtype.

        Raises TypeError if ``loc`` is not a tensor.
        """
        check_tensor("loc", loc)
        return (loc / self.upscale).tanh() * self.upscale if self.tanh_loc else loc

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-density of ``action``.

        ``action``: ``[*B, dim]``, floating dtype. Result: ``[*B]``, dtype of ``params``.
        """
        check_real_action(action, params, self.dim)
        loc, scale = self.loc_and_scale(params)
        return normal_log_prob((action.to(loc.dtype) - loc) / scale, scale).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r"""Computes :math:`\sum_i \big(\log\sigma_i + \tfrac12 + \tfrac12\log 2\pi\big)`: ``[*B]``, dtype of ``params``."""
        _, scale = self.loc_and_scale(params)
        return (scale.log() + 0.5 * (1.0 + math.log(2.0 * math.pi))).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """Returns the location: ``[*B, dim]``, dtype of ``params``."""
        return self.loc_and_scale(params)[0].to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Draws standard normal noise: ``[*B, dim]``, float64 for float64 ``params``, otherwise float32."""
        return draw("normal", self.loc_and_scale(params)[0])

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Computes ``loc + scale * noise``: ``[*B, dim]``, dtype of ``params``."""
        check_tensor("noise", noise)
        loc, scale = self.loc_and_scale(params)
        return (loc + scale * noise).to(params.dtype)


class AddStateIndependentNormalScale(nn.Module):
    """Appends ``dim`` learned raw scales to the locations that a network returns: ``output = concatenate(loc, state_independent_scale)``.

    Use it as the last layer of an actor network whose scale does not depend on the observation, for
    :class:`~a2c_compiled.distributions.Normal`, ``TanhNormal`` or ``TruncatedNormal``. The distribution maps the raw scales: with
    ``scale_mapping="exp"`` they are log standard deviations, as in Stable-Baselines3.

    ``tensordict.nn.AddStateIndependentNormalScale`` has the same parameter name. That module maps the scale itself (by ``exp`` by default)
    and returns a tuple (loc, scale). The module here returns one tensor that ends with the raw scales.

    Args:
        dim: number of locations.
        init_value: initial value of the raw scales.

    Raises:
        ValueError: ``dim`` is less than 1.
        TypeError: ``dim`` is not an integer.

    Source: tensordict's AddStateIndependentNormalScale.
    """

    def __init__(self, dim: int, init_value: float = 0.0) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.state_independent_scale = nn.Parameter(torch.full([self.dim], ANY.number("init_value", init_value)))

    def forward(self, loc: Tensor) -> Tensor:
        """Concatenates ``loc`` and the raw scales.

        Args:
            loc: ``[*B, dim]``, floating dtype.

        Returns:
            ``[*B, 2 * dim]``, dtype of ``loc``.

        Raises:
            ValueError: the last dimension of ``loc`` is not ``dim``.
            TypeError: ``loc`` is not a tensor.
        """
        check_tensor("loc", loc)
        if loc.dim() == 0 or loc.size(-1) != self.dim:
            raise ValueError(f"loc: expected shape [..., {self.dim}], got {list(loc.shape)}")
        return torch.cat([loc, self.state_independent_scale.to(loc.dtype).expand_as(loc)], -1)


def normal_log_prob(standardized: Tensor, scale: Tensor) -> Tensor:
    """Computes the normal log-density from ``standardized = (action - loc) / scale``, summed over the last dimension.

    ``standardized`` and ``scale``: ``[*B, dim]``, floating dtype. Result: ``[*B]``, same dtype.
    """
    return (-0.5 * standardized.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def _softplus_shift(scale_mapping: str) -> float:
    """Parses ``biased_softplus[_<bias>]`` and returns ``c = log(exp(target) - 1)``, with ``target = bias - 0.01``.

    Then ``softplus(c) + 0.01`` is the bias. 0.01 is the default ``min_val`` of ``tensordict.nn.utils.biased_softplus``. Raises ValueError
    if ``scale_mapping`` has another form or the bias is not above 0.01.
    """
    if not isinstance(scale_mapping, str):
        raise TypeError(f"scale_mapping: expected a name, got {described(scale_mapping)}")
    name, _, bias = scale_mapping.partition("softplus_")
    if scale_mapping == "biased_softplus":
        name, bias = "biased_", "1"
    try:
        target = float(bias) - 0.01
    except ValueError:
        target = math.nan  # the comparison below is False for NaN
    if name != "biased_" or not 0.0 < target < math.inf:
        choices = "'biased_softplus', 'biased_softplus_<bias above 0.01>', 'softplus', 'exp', 'relu' or 'identity'"
        raise ValueError(f"scale_mapping: expected {choices}, got {scale_mapping!r}")
    return target + math.log(-math.expm1(-target))  # log(exp(target) - 1); exp(target) would overflow for a large target
