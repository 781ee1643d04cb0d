"""A choice among ``n`` actions."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, check_integer, draw


class Categorical(Distribution):
    r"""One of ``n`` actions; ``params`` are logits, the action is an integer.

    :math:`\log p_i = l_i - \log\sum_j e^{l_j}`. Logits may be as large as the dtype holds, and :math:`-\infty` for an action that is
    impossible. Sampled by the Gumbel-max trick: the noise is one standard Gumbel draw per action.

    Equal to ``torch.distributions.Categorical(logits=params)``.
    """

    has_entropy = True
    noise_kind = "gumbel"

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = positive_int("n", n)
        self.num_params = self.n

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probabilities of all actions, ``[*B, n]``."""
        self.check_params(params)
        return widen(params).log_softmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability of an integer ``action`` of shape ``[*B]``."""
        check_action_shape(action, params, [])
        check_integer(action)
        return self.log_probs(params).gather(-1, action.long().unsqueeze(-1)).squeeze(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """:math:`-\\sum_i p_i \\log p_i`, where an impossible action adds nothing."""
        return sum_of_surprise(self.log_probs(params)).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """The most probable action."""
        return self.log_probs(params).argmax(-1)

    def noise(self, params: Tensor) -> Tensor:
        """Standard Gumbel, ``[*B, n]``."""
        self.check_params(params)
        return draw("gumbel", widen(params).narrow(-1, 0, self.n))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action whose log-probability plus noise is largest."""
        return (self.log_probs(params) + noise).argmax(-1)

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Not defined: a choice has no gradient."""
        raise NotImplementedError("rsample: a discrete distribution has no reparametrised sample; use sample")


class OneHotCategorical(Categorical):
    """One of ``n`` actions, as a one-hot vector ``[*B, n]``.

    Any dtype is taken; samples are int64. Equal to ``torch.distributions.OneHotCategorical(logits=params)``.
    """

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability of a one-hot ``action`` of shape ``[*B, n]``."""
        check_action_shape(action, params, [self.n])
        if action.dtype == torch.bool:
            action = action.to(torch.uint8)
        chosen = action.argmax(-1, keepdim=True)
        return self.log_probs(params).gather(-1, chosen).squeeze(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """The most probable action."""
        return self._one_hot(self.log_probs(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action whose log-probability plus noise is largest."""
        return self._one_hot(self.log_probs(params) + noise)

    def _one_hot(self, score: Tensor) -> Tensor:
        return functional.one_hot(score.argmax(-1), self.n)


def sum_of_surprise(log_probs: Tensor) -> Tensor:
    """:math:`-\\sum_i p_i \\log p_i` over the last dimension, where an impossible action adds nothing."""
    probs = log_probs.exp()
    return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
