"""Choices among ``n`` actions that have an order."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical


class Ordinal(Categorical):
    r"""One of ``n`` ordered actions, such as the steps of a discretised number; ``params`` are scores ``s``, ``[*B, n]``.

    .. math::
        l_i = \sum_{j \le i} \log\sigma(s_j) + \sum_{j > i} \log\sigma(-s_j) = \sum_{0 < j \le i} s_j + \text{constant}

    Each score moves all actions from its own on, so that neighbours learn from each other; the first score moves nothing. A score of
    :math:`-\infty` makes those actions impossible. Otherwise as :class:`Categorical`.

    Equal to TorchRL's ``Ordinal``. Source: Tang and Agrawal, Discretizing Continuous Action Space for On-Policy Optimization, 2020.
    """

    moves: Tensor

    def __init__(self, n: int) -> None:
        super().__init__(n)
        moves = torch.ones(self.n, self.n, dtype=torch.bool).tril()
        moves[:, 0] = False
        self.register_buffer("moves", moves, persistent=False)

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probabilities of all actions, ``[*B, n]``."""
        self.check_params(params)
        # Not cumsum, whose gradient cannot be traced for batches of any size.
        return widen(params).unsqueeze(-2).masked_fill(~self.moves, 0.0).sum(-1).log_softmax(-1)


class OneHotOrdinal(Ordinal, OneHotCategorical):
    """One of ``n`` ordered actions, as a one-hot vector ``[*B, n]``: :class:`Ordinal` otherwise. Equal to TorchRL's ``OneHotOrdinal``."""
