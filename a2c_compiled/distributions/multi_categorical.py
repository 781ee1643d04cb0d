"""The distribution of several independent choices."""

from typing import Iterable, Sequence

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import check_action_shape, check_integer, draw, side_by_side
from a2c_compiled.distributions.categorical import Categorical, sum_of_surprise


class MultiCategorical(Categorical):
    r"""Several independent choices, for gymnasium's ``MultiDiscrete`` space. Choice ``i`` is among ``nvec[i]`` actions.

    .. math:: \log p(a) = \sum_i \log p_i(a_i)

    * ``params``: ``[*B, sum(nvec)]``, floating dtype; the logits of all choices, concatenated.
    * action: ``[*B, len(nvec)]``, integer dtype, entry ``i`` from 0 to ``nvec[i] - 1``. Samples are int64. An entry from ``nvec[i]`` to
      ``max(nvec) - 1`` has log-probability :math:`-\infty`.
    * noise: ``[*B, sum(nvec)]``, standard Gumbel.

    The entropy is the sum of the choices' entropies. Equals one ``torch.distributions.Categorical`` for each choice.

    Args:
        nvec: number of actions of each choice.

    Raises:
        ValueError: ``nvec`` is empty, or a number is less than 1.
        TypeError: ``nvec`` is not a sequence of integers.

    Source: torch.distributions.Categorical.
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
        # Both are tables [len(nvec), max(nvec)]: the index of each logit in params, and whether the choice lacks that action.
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        places = [[start + min(k, n - 1) for k in range(self.n)] for start, n in zip(starts, sizes, strict=True)]
        missing = [[k >= n for k in range(self.n)] for n in sizes]
        self.register_buffer("places", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("missing", torch.tensor(missing), persistent=False)

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all actions of each choice.

        Returns:
            ``[*B, len(nvec), max(nvec)]``, float64 for float64 ``params``, otherwise float32; minus infinity where a choice has fewer
            actions.
        """
        self.check_params(params)
        return self._table(widen(params)).masked_fill(self.missing, -float("inf")).log_softmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-probability, ``[*B]``, dtype of ``params``, of an ``action``, ``[*B, len(nvec)]``, integer dtype."""
        check_action_shape(action, params, [self.num_choices])
        check_integer(action)
        return self.log_probs(params).gather(-1, action.long().unsqueeze(-1)).squeeze(-1).sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """Computes the sum of the choices' entropies: ``[*B]``, dtype of ``params``."""
        return sum_of_surprise(self.log_probs(params)).sum(-1).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Draws standard Gumbel noise: ``[*B, sum(nvec)]``, float32 or float64."""
        self.check_params(params)
        return draw("gumbel", widen(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns the argmax of ``log_probs + noise`` for each choice: ``[*B, len(nvec)]``, int64."""
        return (self.log_probs(params) + self._table(noise)).argmax(-1)

    def _table(self, row: Tensor) -> Tensor:
        return row.index_select(-1, self.places).unflatten(-1, [self.num_choices, self.n])
