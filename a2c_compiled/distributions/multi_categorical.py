"""Several choices at once."""

from typing import Iterable, Sequence

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import check_action_shape, check_integer, draw, side_by_side
from a2c_compiled.distributions.categorical import Categorical, sum_of_surprise


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
