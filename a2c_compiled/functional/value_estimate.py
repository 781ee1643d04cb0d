"""What the functions return."""

from typing import NamedTuple

from torch import Tensor


class ValueEstimate(NamedTuple):
    """Both of the shape and dtype of the reward."""

    advantage: Tensor
    value_target: Tensor
