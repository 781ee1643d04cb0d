"""Standardisation over a whole batch."""

from torch import Tensor

from a2c_compiled._precision import widen


def standardize(x: Tensor, eps: float) -> Tensor:
    r""":math:`(x - \bar x) / \max(\sigma_x, \epsilon)` over all elements, with the unbiased standard deviation; 0 for a single element."""
    wide = widen(x)
    centered = wide - wide.sum() / max(wide.numel(), 1)
    variance = centered.square().sum() / max(wide.numel() - 1, 1)
    # Clamped before the root, whose derivative at 0 is infinite.
    return (centered / variance.clamp_min(eps * eps).sqrt()).to(x.dtype)
