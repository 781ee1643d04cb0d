"""Categorical distributions with a mask of the allowed actions."""

import torch
from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import nan_unless, require
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical, any_entry, choice_log_prob, entry_at


class MaskedCategorical(Categorical):
    r"""One choice among ``n`` actions, of which a mask allows some.

    .. math:: \log p_i = l_i - \log\sum_{j \text{ allowed}} e^{l_j} \text{ if } i \text{ is allowed, else } -\infty

    * ``params``: ``[*B, 2 * n]``, floating dtype; ``n`` logits, then the mask as ``n`` numbers; nonzero means allowed. The mask is part
      of the observation, and the actor network must copy the mask into its output.
    * action: ``[*B]``, integer dtype, an allowed action from 0 to ``n - 1``. Samples are int64.
    * noise: ``[*B, n]``, standard Gumbel.

    The gradient of a forbidden action's logit is 0. :meth:`log_prob` refuses a forbidden action as an action out of range. If no action is
    allowed, the log-probability is NaN.
    Arguments and errors: see :class:`a2c_compiled.distributions.Categorical`.

    Source: TorchRL's MaskedCategorical, which returns minus infinity for a forbidden action.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.num_params = 2 * self.n

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all actions. A forbidden action has minus infinity.

        Result: ``[*B, n]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        return self._finite_log_probs(params).masked_fill(~self._allowed(params), -float("inf"))

    def _log_prob_of_choice(self, params: Tensor, choice: Tensor) -> Tensor:
        """Computes the log-probability of ``choice``.

        ``choice``: ``[*B]``, int64. Result: ``[*B]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        log_prob = choice_log_prob(self._finite_log_probs(params), choice)
        allowed = self._allowed(params)
        # Without an allowed action, the fault is in the mask. A policy must be able to act there: the step may not count.
        any_allowed = any_entry(allowed)
        is_allowed = entry_at(allowed, choice.clamp(0, self.n - 1)) | ~any_allowed
        return nan_unless(any_allowed, require(is_allowed, choice, "choices that the mask in params allows", log_prob))

    def _allowed(self, params: Tensor) -> Tensor:
        """Returns which actions the mask allows: ``[*B, n]``, bool."""
        return params.narrow(-1, self.n, self.n) != 0

    def _finite_log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of the allowed actions: ``[*B, n]``. Those of forbidden actions have no meaning."""
        logits = widen(params).narrow(-1, 0, self.n)
        # Near the lowest number of the dtype. With minus infinity, log_softmax would be NaN if no action is allowed.
        lowest = -1.7e308 if logits.dtype == torch.float64 else -3.4e38
        return logits.masked_fill(~self._allowed(params), lowest).log_softmax(-1)


class MaskedOneHotCategorical(MaskedCategorical, OneHotCategorical):
    """One choice among ``n`` actions, of which a mask allows some, as a one-hot vector.

    * ``params`` and noise: as in :class:`MaskedCategorical`.
    * action: ``[*B, n]``, as in :class:`OneHotCategorical`.

    The mode always has a single 1. TorchRL's mode has several ones if several actions have the largest probability.
    Formula, arguments and errors: see :class:`a2c_compiled.distributions.MaskedCategorical`.

    Source: TorchRL's MaskedOneHotCategorical.
    """
