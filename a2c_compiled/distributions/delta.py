"""Distributions of deterministic policies: all probability is at one action."""

from typing import Sequence, Union

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import NOT_NEGATIVE, positive_int
from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, box, check_real_action
from a2c_compiled.distributions.tanh_normal import squashed


class Delta(Distribution):
    r"""A deterministic policy: the action is the output :math:`\mu` of the actor network.

    .. math::
        \log p(a) = \begin{cases} \infty & |a_i - \mu_i| < \text{atol} + \text{rtol}\, |\mu_i| \text{ for all } i \\
        -\infty & \text{otherwise} \end{cases}

    * ``params``: ``[*B, dim]``, floating dtype; the action.
    * action: ``[*B, dim]``, floating dtype.
    * noise: ``[*B, 0]``: none is needed.

    There is no entropy. The log-probability is infinite, so a policy cannot learn from a loss that contains the log-probability.

    Args:
        dim: length of the action.
        atol, rtol: absolute and relative tolerance within which two actions are equal.

    Raises:
        ValueError: ``dim`` is less than 1, or a tolerance is negative.
        TypeError: ``dim`` is not an integer.

    Source: TorchRL's ``Delta``, which returns the same values.
    """

    has_entropy = False

    def __init__(self, dim: int, atol: float = 1e-6, rtol: float = 1e-6) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.num_params = self.dim
        self.atol, self.rtol = NOT_NEGATIVE.number("atol", atol), NOT_NEGATIVE.number("rtol", rtol)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Returns infinity where ``action`` equals the policy's action within the tolerances, otherwise minus infinity.

        ``action`` is ``[*B, dim]``, floating dtype. The result is ``[*B]``, dtype of ``params``.
        """
        check_real_action(action, params, self.dim)
        mode = self.mode(params)
        distance, allowed = (widen(action) - mode).abs(), self.atol + self.rtol * widen(mode).abs()
        is_equal = (distance < allowed).all(-1)
        infinity = torch.full_like(is_equal, float("inf"), dtype=params.dtype)
        return torch.where(is_equal, infinity, -infinity)

    def entropy(self, params: Tensor) -> Tensor:
        """Raises NotImplementedError: a deterministic action has no entropy."""
        raise NotImplementedError("entropy: a deterministic action has no entropy")

    def mode(self, params: Tensor) -> Tensor:
        """Returns ``params``, which is the action: ``[*B, dim]``, dtype of ``params``."""
        self.check_params(params)
        return params

    def noise(self, params: Tensor) -> Tensor:
        """Returns an empty tensor, ``[*B, 0]``: no noise is needed. Its dtype is float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return widen(params).narrow(-1, 0, 0)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns :meth:`mode`; ``noise`` is not used."""
        check_tensor("noise", noise)
        return self.mode(params)


class TanhDelta(Delta):
    r"""A deterministic policy whose action is the output :math:`\mu` of the actor network, mapped by tanh into the box ``(low, high)``.

    .. math:: a = c + \tfrac{h-l}{2}\tanh(\mu + c), \qquad c = \tfrac{h+l}{2}

    where ``l`` is ``low`` and ``h`` is ``high``. As in :class:`TanhNormal`, tanh is limited to a little less than 1.

    * ``params``: ``[*B, dim]``, floating dtype; :math:`\mu`.
    * action: ``[*B, dim]``, floating dtype.
    * log-probability and noise: as in :class:`Delta`.

    :meth:`log_prob` compares the action with :meth:`mode`. TorchRL first applies the inverse of tanh to the action, and the rounding error
    of the inverse exceeds ``atol``.

    Args:
        dim: length of the action.
        low, high: bounds: a number, or a sequence of ``dim`` numbers. The bounds stay in float64 when the module changes dtype.
        atol, rtol: absolute and relative tolerance within which two actions are equal.

    Raises:
        ValueError: ``dim`` is less than 1, a tolerance is negative, or the bounds are not finite, not ``low < high``, or not of length
            ``dim``.
        TypeError: ``dim`` is not an integer.

    Source: TorchRL's ``TanhDelta``, which adds :math:`c` inside the tanh too, and returns the same values except in :meth:`log_prob`.
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
        lower, upper = box(low, high, self.dim)
        self.register_buffer("center", (upper + lower) / 2, persistent=False)
        self.register_buffer("half_width", (upper - lower) / 2, persistent=False)

    def mode(self, params: Tensor) -> Tensor:
        r"""Returns :math:`c + \tfrac{h-l}{2}\tanh(\mu + c)`: ``[*B, dim]``, dtype of ``params``."""
        self.check_params(params)
        wide = widen(params)
        return squashed(wide + self.center.to(wide.dtype), self.center, self.half_width).to(params.dtype)
