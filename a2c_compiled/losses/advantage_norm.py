"""The scale of the returns, followed over time."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled._precision import widen


class AdvantageNorm(CoefficientModule):
    """What divides advantages: a scale that follows the returns."""

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Take new returns into account, those of ``mask`` where it is given."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """What advantages are to be divided by."""
        raise NotImplementedError


class PercentileNorm(AdvantageNorm):
    r"""The span between two quantiles of the returns, averaged over time, to divide advantages by.

    :math:`\text{scale} = \max(\text{min\_scale},\ \overline{q_\text{high}} - \overline{q_\text{low}})`, where each mean moves towards the
    quantile of the latest returns by ``rate``. Large returns are scaled down, small and noisy ones are not blown up.
    As TorchRL's ``PercentileValueNorm``. The means are float64, and remain it where the module is converted to another dtype.

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
        # Of one element, not of no dimension: torch.compile takes a float64 scalar for a number, and may lose what is written into it.
        self.register_buffer("low", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("high", torch.zeros(1, dtype=torch.float64))

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Take new returns into account, those of ``mask`` where it is given; neither no returns nor NaN or infinite
        quantiles change anything."""
        if value_target.numel() == 0:
            return
        with torch.no_grad():
            returns = widen(value_target.detach()).reshape(-1)
            counted = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask.reshape(-1)
            ordered = returns.masked_fill(~counted, float("inf")).sort()[0]
            count = counted.sum()
            for mean, quantile in ((self.low, self.quantiles[0]), (self.high, self.quantiles[1])):
                latest = _quantile(ordered, count, quantile)
                latest = torch.where((count > 0) & latest.isfinite(), latest, mean)
                mean.lerp_(latest, self.rate)

    def scale(self) -> Tensor:
        """What advantages are to be divided by."""
        return (self.high - self.low).clamp_min(self.min_scale).squeeze(0)


def _quantile(ordered: Tensor, count: Tensor, quantile: float) -> Tensor:
    """Of the first ``count`` of ``ordered``, between neighbours linearly. torch.quantile knows neither masks nor large data."""
    last = (count - 1).clamp_min(0).double()
    place = quantile * last
    below = place.floor()
    # Indexing with a 0-d tensor would read the device.
    neighbours = ordered.gather(0, torch.stack([below, torch.minimum(below + 1, last)]).long()).double()
    return torch.lerp(neighbours[0], neighbours[1], place - below)
