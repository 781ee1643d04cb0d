"""The result type of the advantage estimators."""

from typing import NamedTuple

from torch import Tensor


class ValueEstimate(NamedTuple):
    """Advantage and value target of every step; both have the shape and dtype of ``reward``.

    Fields:
        advantage: ``[*B, T, *F]``, dtype of ``reward``: estimate of how much better the action was than the policy's average.
        value_target: ``[*B, T, *F]``, dtype of ``reward``: the return that the critic learns to predict.
    """

    advantage: Tensor
    value_target: Tensor
