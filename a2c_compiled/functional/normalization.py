"""Standardisation over a whole batch."""

from torch import Tensor

from a2c_compiled.functional.arguments import widen


def standardize(x: Tensor, eps: float) -> Tensor:
    r""":math:`(x - \bar x) / \max(\sigma_x, \epsilon)` over all elements, with the unbiased standard deviation; 0 for a single element."""
    wide = widen(x)
    centered = wide - wide.sum() / max(wide.numel(), 1)
    std = (centered.square().sum() / max(wide.numel() - 1, 1)).sqrt()
    return (centered / std.clamp_min(eps)).to(x.dtype)
