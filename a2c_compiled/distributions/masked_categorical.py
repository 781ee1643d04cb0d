"""A choice among those of ``n`` actions that are allowed."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical


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
