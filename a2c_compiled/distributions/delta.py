"""Policies that are certain of their action."""

from typing import Sequence, Union

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, box, check_real_action
from a2c_compiled.distributions.tanh_normal import squashed


class Delta(Distribution):
    r"""The action is what the actor network returns, ``[*B, dim]``: for a deterministic policy.

    The density is infinite there and 0 elsewhere: :math:`\log p` is :math:`\infty` where every :math:`|a_i - \mu_i| < \text{atol} +
    \text{rtol}\, |\mu_i|`, else :math:`-\infty`. There is no entropy, and a loss of such log-probabilities learns nothing.

    Equal to TorchRL's ``Delta``.
    """

    has_entropy = False

    def __init__(self, dim: int, atol: float = 1e-6, rtol: float = 1e-6) -> None:
        super().__init__()
        for name, tolerance in (("atol", atol), ("rtol", rtol)):
            if not tolerance >= 0:
                raise ValueError(f"{name}: expected a number from 0 up, got {tolerance}")
        self.dim = positive_int("dim", dim)
        self.num_params = self.dim
        self.atol, self.rtol = float(atol), float(rtol)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Infinite: positive at the action, negative elsewhere."""
        check_real_action(action, params, self.dim)
        certain = self.mode(params)
        distance, allowed = (widen(action) - certain).abs(), self.atol + self.rtol * widen(certain).abs()
        is_equal = (distance < allowed).all(-1)
        infinity = torch.full_like(is_equal, float("inf"), dtype=params.dtype)
        return torch.where(is_equal, infinity, -infinity)

    def entropy(self, params: Tensor) -> Tensor:
        """Not defined."""
        raise NotImplementedError("entropy: a certain action has none")

    def mode(self, params: Tensor) -> Tensor:
        """The action."""
        self.check_params(params)
        return params

    def noise(self, params: Tensor) -> Tensor:
        """None is needed: ``[*B, 0]``."""
        self.check_params(params)
        return widen(params).narrow(-1, 0, 0)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action."""
        return self.mode(params)


class TanhDelta(Delta):
    r"""The action is what the actor network returns, squashed into the box ``(low, high)``.

    :math:`a = c + \tfrac{h-l}{2}\tanh(\mu + c)`, where :math:`c = \tfrac{h+l}{2}`. Log-probabilities are as in :class:`Delta`. Equal to
    TorchRL's ``TanhDelta``, but that actions are compared as they are, not before the squashing, whose rounding is larger than ``atol``.

    Args:
        dim: length of the action.
        low, high: bounds, numbers or one per dimension. They stay in float64 when the module changes dtype.
        atol, rtol: as in :class:`Delta`.
    """

    center: Tensor
    half_width: Tensor

    def __init__(
        self,
        dim: int,
        low: Union[float, Sequence[float]] = -1.0,
        high: Union[float, Sequence[float]] = 1.0,
        atol: float = 1e-6,
        rtol: float = 1e-6,
    ) -> None:
        super().__init__(dim, atol, rtol)
        low_, high_ = box(low, high, self.dim)
        self.register_buffer("center", (high_ + low_) / 2, persistent=False)
        self.register_buffer("half_width", (high_ - low_) / 2, persistent=False)

    def mode(self, params: Tensor) -> Tensor:
        """The squashed parameter."""
        self.check_params(params)
        wide = widen(params)
        return squashed(wide + self.center.to(wide.dtype), self.center, self.half_width).to(params.dtype)
