"""The precision that is computed in. TorchScript reads it."""

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for the half-precision types, whose sums over time would lose what they add; otherwise the tensor's own."""
    return torch.float32 if tensor.dtype == torch.float16 or tensor.dtype == torch.bfloat16 else tensor.dtype


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in the precision that is computed in."""
    return tensor.to(working_dtype(tensor))
