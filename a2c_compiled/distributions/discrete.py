"""Choices among ``n`` actions."""

from typing import Iterable, Optional, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, draw, side_by_side


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


class MaskedCategorical(Categorical):
    r"""One of those of ``n`` actions that are allowed.

    ``params`` are the logits and the mask side by side, ``[*B, 2n]``: the mask is part of the observation, so the actor network passes
    it through (nonzero: allowed). A forbidden action has probability 0 and log-probability :math:`-\infty`, and no gradient reaches its
    logit. Equal to TorchRL's ``MaskedCategorical``.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.num_params = 2 * self.n

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probabilities of all actions, ``[*B, n]``."""
        self.check_params(params)
        wide = widen(params)
        forbidden = wide.narrow(-1, self.n, self.n) == 0
        # The lowest finite number: a row with nothing allowed gives no NaN.
        lowest = -1.7e308 if wide.dtype == torch.float64 else -3.4e38
        logits = wide.narrow(-1, 0, self.n).masked_fill(forbidden, lowest)
        return logits.log_softmax(-1).masked_fill(forbidden, -float("inf"))


class MaskedOneHotCategorical(MaskedCategorical, OneHotCategorical):
    """One of those of ``n`` actions that are allowed, as a one-hot vector: ``params`` as in :class:`MaskedCategorical`, the action as in
    :class:`OneHotCategorical`. Equal to TorchRL's ``MaskedOneHotCategorical``, but for a mode with a single 1 also where several actions
    are the most probable."""


class MultiCategorical(Categorical):
    r"""Several independent choices, the i-th one among ``nvec[i]`` actions: gymnasium's ``MultiDiscrete``.

    ``params`` are the logits of all choices side by side, ``[*B, sum(nvec)]``; the action is an integer for each, ``[*B, len(nvec)]``.
    :math:`\log p = \sum_i \log p_i(a_i)`, and the entropy is the sum of the choices' entropies. An action beyond its own choice's
    ``nvec[i]``, but not beyond the largest, has probability 0.

    Equal to one ``torch.distributions.Categorical`` for each choice.
    """

    places: Tensor
    missing: Tensor

    def __init__(self, nvec: Sequence[int]) -> None:
        if not isinstance(nvec, Iterable):
            raise TypeError(f"nvec: expected a sequence of integers, got {nvec!r}")
        sizes = [positive_int("nvec", n) for n in nvec]
        if not sizes:
            raise ValueError("nvec: expected at least one choice, got none")
        super().__init__(max(sizes))
        self.num_choices = len(sizes)
        self.num_params = sum(sizes)
        self.noise_kind = side_by_side(("gumbel", n) for n in sizes)
        # A row for each choice, as long as the longest: where its logits are among all, and which entries it lacks.
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        places = [[start + min(k, n - 1) for k in range(self.n)] for start, n in zip(starts, sizes, strict=True)]
        missing = [[k >= n for k in range(self.n)] for n in sizes]
        self.register_buffer("places", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("missing", torch.tensor(missing), persistent=False)

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probabilities of all actions of each choice, ``[*B, len(nvec), max(nvec)]``; minus infinity where there is none."""
        self.check_params(params)
        return self._table(widen(params)).masked_fill(self.missing, -float("inf")).log_softmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability of an integer ``action`` of shape ``[*B, len(nvec)]``."""
        check_action_shape(action, params, [self.num_choices])
        check_integer(action)
        return self.log_probs(params).gather(-1, action.long().unsqueeze(-1)).squeeze(-1).sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """The sum of the choices' entropies."""
        return sum_of_surprise(self.log_probs(params)).sum(-1).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Standard Gumbel, ``[*B, sum(nvec)]``."""
        self.check_params(params)
        return draw("gumbel", widen(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """For each choice, the action whose log-probability plus noise is largest."""
        return (self.log_probs(params) + self._table(noise)).argmax(-1)

    def _table(self, row: Tensor) -> Tensor:
        return row.index_select(-1, self.places).unflatten(-1, [self.num_choices, self.n])


def check_integer(action: Tensor) -> None:
    """Raise TypeError unless ``action`` has an integer dtype."""
    if action.is_floating_point() or action.dtype == torch.bool:
        raise TypeError(f"action: expected an integer dtype, got {action.dtype}")


def sum_of_surprise(log_probs: Tensor) -> Tensor:
    """:math:`-\\sum_i p_i \\log p_i` over the last dimension, where an impossible action adds nothing."""
    probs = log_probs.exp()
    return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
