"""The categorical distribution: one choice among ``n`` actions, as an integer or a one-hot vector."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import Distribution, check_action_shape, check_integer, draw, require


class Categorical(Distribution):
    r"""One choice among ``n`` actions, as an integer.

    .. math:: \log p_i = l_i - \log\sum_j e^{l_j}

    * ``params``: ``[*B, n]``, floating dtype; the logits :math:`l`. The logits may be as large as the dtype can represent.
      :math:`-\infty` makes an action impossible.
    * action: ``[*B]``, integer dtype, from 0 to ``n - 1``. Samples are int64.
    * noise: ``[*B, n]``, standard Gumbel. A sample is the argmax of ``log_probs + noise`` (the Gumbel-max trick).

    Args:
        n: number of actions.

    Raises:
        ValueError: ``n`` is less than 1.
        TypeError: ``n`` is not an integer.

    Source: ``torch.distributions.Categorical(logits=params)``.
    """

    has_entropy = True
    noise_kind = "gumbel"

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = positive_int("n", n)
        self.num_params = self.n

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all actions: ``[*B, n]``, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return widen(params).log_softmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-probability of ``action``.

        ``action``: ``[*B]``, integer dtype. Result: ``[*B]``, dtype of ``params``.
        """
        check_action_shape(action, params, [])
        check_integer(action)
        return self._log_prob_of_choice(params, action.long()).to(params.dtype)

    def _log_prob_of_choice(self, params: Tensor, choice: Tensor) -> Tensor:
        """Computes the log-probability of ``choice``.

        ``choice``: ``[*B]``, int64. Result: ``[*B]``, float64 for float64 ``params``, otherwise float32.
        """
        return choice_log_prob(self.log_probs(params), choice)

    def entropy(self, params: Tensor) -> Tensor:
        """Computes :math:`-\\sum_i p_i \\log p_i`: ``[*B]``, dtype of ``params``. A term with :math:`p_i = 0` counts as 0."""
        return entropy_from_log_probs(self.log_probs(params)).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """Returns, for each choice, the action with the largest probability. Result: int64, with the shape of an action."""
        return self.log_probs(params).argmax(-1)

    def noise(self, params: Tensor) -> Tensor:
        """Draws standard Gumbel noise: ``[*B, n]``, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return draw("gumbel", widen(params).narrow(-1, 0, self.n))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns the argmax of ``log_probs + noise`` over the last dimension. Result: int64, with the shape of an action."""
        check_tensor("noise", noise)
        return (self.log_probs(params) + noise).argmax(-1)

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Raises NotImplementedError: a discrete action has no gradient."""
        raise NotImplementedError("rsample: a discrete distribution has no reparametrised sample; use sample")


class OneHotCategorical(Categorical):
    """One choice among ``n`` actions, as a one-hot vector.

    * ``params`` and noise: as in :class:`Categorical`.
    * action: ``[*B, n]``, any dtype, no entry negative, at least one positive; the position of its largest entry is the choice. Samples
      are int64.

    Formula, arguments and errors: see :class:`a2c_compiled.distributions.Categorical`.

    Source: ``torch.distributions.OneHotCategorical(logits=params)``.
    """

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-probability of a one-hot ``action``.

        ``action``: ``[*B, n]``, any dtype. Result: ``[*B]``, dtype of ``params``.
        """
        check_action_shape(action, params, [self.n])
        if action.dtype == torch.bool:  # argmax does not accept bool
            action = action.to(torch.uint8)
        choice = action.argmax(-1)
        is_one_hot = any_entry(action > 0) & ~any_entry(~(action >= 0))
        log_prob = self._log_prob_of_choice(params, choice)
        return require(is_one_hot, action, "vectors with a positive and no negative entry", log_prob).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        """Returns the one-hot action with the largest probability: ``[*B, n]``, int64."""
        return self._one_hot(self.log_probs(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns the one-hot argmax of ``log_probs + noise``: ``[*B, n]``, int64."""
        check_tensor("noise", noise)
        return self._one_hot(self.log_probs(params) + noise)

    def _one_hot(self, score: Tensor) -> Tensor:
        """Returns 1 at the largest ``score`` of the last dimension, else 0: ``[*B, n]``, int64."""
        return functional.one_hot(score.argmax(-1), self.n)


def choice_log_prob(log_probs: Tensor, choice: Tensor) -> Tensor:
    """Returns the entry of ``log_probs``, ``[*B, n]``, at ``choice``, ``[*B]``, int64. Refuses a choice that is not from 0 to ``n - 1``."""
    last = log_probs.size(-1) - 1
    nearest = choice.clamp(0, last)  # gather must not read outside of log_probs
    return require(nearest == choice, choice, f"choices from 0 to {last}", entry_at(log_probs, nearest))


def entry_at(table: Tensor, choice: Tensor) -> Tensor:
    """Returns the entry of ``table``, ``[*B, n]``, at ``choice``, ``[*B]``, int64, from 0 to ``n - 1``."""
    return table.gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def any_entry(flags: Tensor) -> Tensor:
    """Returns whether any flag in the last dimension is True: ``[*B]``, bool, for ``flags`` ``[*B, n]``."""
    # Not any(-1): onnxruntime's reductions keep the last dimension of an empty tensor.
    return entry_at(flags, flags.to(torch.uint8).argmax(-1))


def entropy_from_log_probs(log_probs: Tensor) -> Tensor:
    """Computes the entropy :math:`-\\sum_i p_i \\log p_i` over the last dimension, in the dtype of ``log_probs``.

    A term with :math:`p_i = 0` counts as 0.
    """
    probs = log_probs.exp()
    return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
