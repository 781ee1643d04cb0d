"""The precision that is computed in. TorchScript reads it."""

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for the half-precision types, whose sums over time would lose what they add; otherwise the tensor's own."""
    return torch.float32 if tensor.dtype == torch.float16 or tensor.dtype == torch.bfloat16 else tensor.dtype


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in the precision that is computed in."""
    return tensor.to(working_dtype(tensor))


LARGEST_LOG_RATIO = 80.0
"""Beyond, the ratio of two probabilities overflows in float32, and a clip would send a zero times infinity back."""


def clamped_log_ratio(log_pi: Tensor, log_mu: Tensor, largest: float = LARGEST_LOG_RATIO) -> Tensor:
    """:math:`\\log(\\pi/\\mu)`, at most ``largest``, in the precision that is computed in."""
    return (widen(log_pi) - widen(log_mu)).clamp_max(largest)
