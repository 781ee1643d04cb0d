"""The distribution of vectors of independent binary choices."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, draw, require


class Bernoulli(Distribution):
    r"""A vector of ``dim`` independent choices between 0 and 1, for gymnasium's ``MultiBinary`` space.

    .. math:: \log p(a) = \sum_i \log\sigma(s_i l_i), \qquad s_i = 1 \text{ if } a_i = 1, \text{ else } -1

    * ``params``: ``[*B, dim]``, floating dtype; the logits :math:`l`. Logits may be infinite.
    * action: ``[*B, dim]``, any dtype, each entry 0 or 1. Samples are int64.
    * noise: ``[*B, dim]``, standard logistic. A sample is 1 where ``logit + noise > 0``.

    The mode is 0 where both choices are equally probable; torch's mode is NaN there.

    Args:
        dim: length of the action.

    Raises:
        ValueError: ``dim`` is less than 1.
        TypeError: ``dim`` is not an integer.

    Source: ``Independent(torch.distributions.Bernoulli(logits=params), 1)``.
    """

    has_entropy = True
    noise_kind = "logistic"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.num_params = self.dim

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        r"""Computes :math:`\sum_i \log\sigma(s_i l_i)`.

        ``action``: ``[*B, dim]``, any dtype. Result: ``[*B]``, dtype of ``params``.
        """
        self.check_params(params)
        check_action_shape(action, params, [self.dim])
        logits = widen(params)
        log_prob = -_softplus(torch.where(action != 0, -logits, logits))
        return require((action == 0) | (action == 1), action, "entries of 0 or 1", log_prob).sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r"""Computes :math:`\sum_i \sigma(l_i) \operatorname{softplus}(-l_i) + \sigma(-l_i) \operatorname{softplus}(l_i)`:
        ``[*B]``, dtype of ``params``."""
        self.check_params(params)
        # If a logit is beyond 100, its term is below 1e-41. Without the clamp, an infinite logit would give 0 * inf = NaN.
        logits = widen(params).clamp(-100.0, 100.0)
        return (logits.sigmoid() * _softplus(-logits) + (-logits).sigmoid() * _softplus(logits)).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """Returns 1 where the logit is positive, else 0: ``[*B, dim]``, int64."""
        self.check_params(params)
        return (params > 0).long()

    def noise(self, params: Tensor) -> Tensor:
        """Draws standard logistic noise: ``[*B, dim]``, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return draw("logistic", widen(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns 1 where ``logit + noise > 0``, else 0: ``[*B, dim]``, int64."""
        check_tensor("noise", noise)
        self.check_params(params)
        return (widen(params) + noise > 0).long()

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Raises NotImplementedError: a discrete action has no gradient."""
        raise NotImplementedError("rsample: a discrete distribution has no reparametrised sample; use sample")


def _softplus(x: Tensor) -> Tensor:
    """Computes ``log(1 + exp(x))``, accurately in float64 too."""
    # Above the threshold, torch returns x. With the default threshold of 20, the error of that exceeds float64's rounding.
    return functional.softplus(x, threshold=40.0)
