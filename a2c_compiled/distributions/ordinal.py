"""Categorical distributions over ordered actions."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical


class Ordinal(Categorical):
    r"""One choice among ``n`` ordered actions, such as the values of a discretised number.

    .. math::
        l_i = \sum_{j \le i} \log\sigma(s_j) + \sum_{j > i} \log\sigma(-s_j) = \sum_{0 < j \le i} s_j + \text{constant}

    * ``params``: ``[*B, n]``, floating dtype; the scores :math:`s`. Score :math:`s_j` is added to the logits of the actions from ``j``
      to ``n - 1``, so that actions close in the order have most scores in common. :math:`s_0` has no effect. A score
      :math:`s_j = -\infty` with ``j > 0`` makes the actions from ``j`` on impossible.

    The logits :math:`l` define the same distribution as in :class:`Categorical`, with the same action and noise.
    Arguments and errors: see :class:`a2c_compiled.distributions.Categorical`.

    Source: TorchRL's Ordinal; Tang and Agrawal, Discretizing Continuous Action Space for On-Policy Optimization, 2020.
    """

    is_summand: Tensor  # [n, n]: whether logit i contains score j

    def __init__(self, n: int) -> None:
        super().__init__(n)
        is_summand = torch.ones(self.n, self.n, dtype=torch.bool).tril()
        is_summand[:, 0] = False
        self.register_buffer("is_summand", is_summand, persistent=False)

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all actions from the scores.

        Result: ``[*B, n]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        # A masked sum instead of cumsum, because the gradient of cumsum cannot be traced with a symbolic batch size.
        return widen(params).unsqueeze(-2).masked_fill(~self.is_summand, 0.0).sum(-1).log_softmax(-1)


class OneHotOrdinal(Ordinal, OneHotCategorical):
    """One choice among ``n`` ordered actions, as a one-hot vector ``[*B, n]``; see :class:`OneHotCategorical` for the action.

    Formula, arguments and errors: see :class:`a2c_compiled.distributions.Ordinal`.

    Source: TorchRL's OneHotOrdinal.
    """
