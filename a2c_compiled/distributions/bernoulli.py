"""Vectors of yes and no."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, draw


class Bernoulli(Distribution):
    r"""A vector of ``dim`` independent choices of 0 or 1: gymnasium's ``MultiBinary``; ``params`` are the logits, ``[*B, dim]``.

    :math:`\log p = \sum_i \log\sigma(\pm l_i)`, the sign that of the choice. Logits may be infinite. The action is ``[*B, dim]`` of any
    dtype, where what is not 0 counts as 1; samples are int64. Sampled as :math:`l + \text{noise} > 0` with standard logistic noise.

    Equal to ``Independent(torch.distributions.Bernoulli(logits=params), 1)``, but for a mode also where both are as probable: 0.
    """

    has_entropy = True
    noise_kind = "logistic"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.num_params = self.dim

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability of ``action`` of shape ``[*B, dim]``."""
        self.check_params(params)
        check_action_shape(action, params, [self.dim])
        logits = widen(params)
        return -_softplus(torch.where(action != 0, -logits, logits)).sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r""":math:`\sum_i \sigma(l_i) \operatorname{softplus}(-l_i) + \sigma(-l_i) \operatorname{softplus}(l_i)`."""
        self.check_params(params)
        logits = widen(params).clamp(-100.0, 100.0)  # beyond, there is less than 1e-41; and infinity times 0 is NaN
        return (logits.sigmoid() * _softplus(-logits) + (-logits).sigmoid() * _softplus(logits)).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """1 where that is more probable."""
        self.check_params(params)
        return (params > 0).long()

    def noise(self, params: Tensor) -> Tensor:
        """Standard logistic, ``[*B, dim]``."""
        self.check_params(params)
        return draw("logistic", widen(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """1 where the logit plus noise is positive."""
        self.check_params(params)
        return (widen(params) + noise > 0).long()

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Not defined: a choice has no gradient."""
        raise NotImplementedError("rsample: a discrete distribution has no reparametrised sample; use sample")


def _softplus(x: Tensor) -> Tensor:
    # The default threshold of 20 shows in float64.
    return functional.softplus(x, threshold=40.0)
