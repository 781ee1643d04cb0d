"""Categorical distributions with a mask of the allowed actions."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical


class MaskedCategorical(Categorical):
    r"""One choice among ``n`` actions, of which a mask allows some.

    .. math:: \log p_i = l_i - \log\sum_{j \text{ allowed}} e^{l_j} \text{ if } i \text{ is allowed, else } -\infty

    * ``params``: ``[*B, 2 * n]``, floating dtype; ``n`` logits, then the mask as ``n`` numbers; nonzero means allowed. The mask is part
      of the observation, and the actor network must copy the mask into its output.
    * action: ``[*B]``, integer dtype, from 0 to ``n - 1``. Samples are int64.
    * noise: ``[*B, n]``, standard Gumbel.

    The gradient of a forbidden action's logit is 0.
    Arguments and errors: see :class:`a2c_compiled.distributions.Categorical`.

    Source: TorchRL's MaskedCategorical.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.num_params = 2 * self.n

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all actions. A forbidden action has minus infinity.

        Result: ``[*B, n]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        wide = widen(params)
        forbidden = wide.narrow(-1, self.n, self.n) == 0
        # Near the lowest number of the dtype. With minus infinity, log_softmax would be NaN if no action is allowed.
        lowest = -1.7e308 if wide.dtype == torch.float64 else -3.4e38
        logits = wide.narrow(-1, 0, self.n).masked_fill(forbidden, lowest)
        return logits.log_softmax(-1).masked_fill(forbidden, -float("inf"))


class MaskedOneHotCategorical(MaskedCategorical, OneHotCategorical):
    """One choice among ``n`` actions, of which a mask allows some, as a one-hot vector.

    * ``params`` and noise: as in :class:`MaskedCategorical`.
    * action: ``[*B, n]``, as in :class:`OneHotCategorical`.

    The mode always has a single 1. TorchRL's mode has several ones if several actions have the largest probability.
    Formula, arguments and errors: see :class:`a2c_compiled.distributions.MaskedCategorical`.

    Source: TorchRL's MaskedOneHotCategorical.
    """
