"""Vectors of real numbers, each a normal variable."""

import math
from typing import Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_real_action, draw


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
        return normal_log_prob((action.to(loc.dtype) - loc) / scale, scale).to(params.dtype)

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


class AddStateIndependentNormalScale(nn.Module):
    """Puts a learnt raw scale beside the locations that a network returns: ``[*B, dim]`` to ``[*B, 2 * dim]``.

    The last layer of an actor network whose scales do not depend on the observation, for :class:`~a2c_compiled.distributions.Normal` and
    the others that take locations and raw scales side by side. They map the raw scale: ``scale_mapping="exp"`` makes it a log standard
    deviation, as in Stable-Baselines3 and by default in TorchRL's module of this name, whose parameter is called the same.

    Args:
        dim: number of locations.
        init_value: of the raw scale.
    """

    def __init__(self, dim: int, init_value: float = 0.0) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.state_independent_scale = nn.Parameter(torch.full([self.dim], float(init_value)))

    def forward(self, loc: Tensor) -> Tensor:
        """Raises ValueError unless ``loc`` is ``[*B, dim]``."""
        if loc.dim() == 0 or loc.size(-1) != self.dim:
            raise ValueError(f"loc: expected shape [..., {self.dim}], got {list(loc.shape)}")
        return torch.cat([loc, self.state_independent_scale.to(loc.dtype).expand_as(loc)], -1)


def normal_log_prob(standardized: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * standardized.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


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
