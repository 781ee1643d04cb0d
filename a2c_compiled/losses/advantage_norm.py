"""The scale of the returns, followed over time."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn


class PercentileNorm(nn.Module):
    r"""The span between two quantiles of the returns, averaged over time, to divide advantages by.

    :math:`\text{scale} = \max(\text{min\_scale},\ \overline{q_\text{high}} - \overline{q_\text{low}})`, where each mean moves towards the
    quantile of the latest returns by ``rate``. Large returns are scaled down, small and noisy ones are not blown up.
    As TorchRL's ``PercentileValueNorm``.

    Args:
        quantiles: the lower and the upper one.
        rate: how far the means move towards the latest quantiles, from 0 to 1.
        min_scale: smallest scale.

    Raises:
        ValueError: a number is out of range.

    Source: Hafner et al., Mastering Diverse Domains through World Models, 2023.
    """

    low: Tensor
    high: Tensor

    def __init__(self, quantiles: Tuple[float, float] = (0.05, 0.95), rate: float = 0.01, min_scale: float = 1.0) -> None:
        super().__init__()
        low, high = quantiles
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles: expected two ascending numbers from 0 to 1, got {quantiles}")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected a number from 0 to 1, got {rate}")
        if not min_scale > 0:
            raise ValueError(f"min_scale: expected a positive number, got {min_scale}")
        self.quantiles = (float(low), float(high))
        self.rate = float(rate)
        self.min_scale = float(min_scale)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Take new returns into account, those of ``mask`` where it is given."""
        with torch.no_grad():
            returns = value_target.detach().to(self.low.dtype).reshape(-1)
            counted = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask.reshape(-1)
            ordered = returns.masked_fill(~counted, float("inf")).sort()[0]
            count = counted.sum()
            # Where nothing counts, nothing moves.
            rate = self.rate * (count > 0).to(ordered.dtype)
            self.low.lerp_(torch.where(count > 0, _quantile(ordered, count, self.quantiles[0]), self.low), rate)
            self.high.lerp_(torch.where(count > 0, _quantile(ordered, count, self.quantiles[1]), self.high), rate)

    def scale(self) -> Tensor:
        """What advantages are to be divided by."""
        return (self.high - self.low).clamp_min(self.min_scale)


def _quantile(ordered: Tensor, count: Tensor, quantile: float) -> Tensor:
    """Of the first ``count`` of ``ordered``, between neighbours linearly. torch.quantile knows neither masks nor large data."""
    place = quantile * (count - 1).clamp_min(0).to(ordered.dtype)
    below = place.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp_min(0))
    return torch.lerp(ordered[below], ordered[above], place - below.to(ordered.dtype))
