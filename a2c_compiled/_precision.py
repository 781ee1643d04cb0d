"""The dtype of intermediate results. TorchScript compiles these functions."""

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Returns float32 for float16 and bfloat16, which are too coarse for sums over time; otherwise the dtype of ``tensor``."""
    return torch.float32 if tensor.dtype == torch.float16 or tensor.dtype == torch.bfloat16 else tensor.dtype


def widen(tensor: Tensor) -> Tensor:
    """Converts ``tensor`` to its :func:`working_dtype`."""
    return tensor.to(working_dtype(tensor))


LARGEST_LOG_RATIO = 80.0
"""Largest logarithm of a probability ratio. The exponential of 89 overflows in float32; the gradient of a clip is then 0 * inf = NaN."""


def clamped_log_ratio(log_pi: Tensor, log_mu: Tensor, largest: float = LARGEST_LOG_RATIO) -> Tensor:
    """Computes :math:`\\min(\\log\\pi - \\log\\mu, \\text{largest})`, with the shape of the arguments, in the working dtype."""
    return (widen(log_pi) - widen(log_mu)).clamp_max(largest)
